"""The script at a site: asks NVFlare's client API what is to do, has `SitePart` do it, and answers."""

from __future__ import annotations

import logging
from typing import Any

from twinfed.client.errors import Stopped
from twinfed.client.site_process import lower_priority
from twinfed.engines.nvflare.exchange import FAULTS, REGISTER, told, write_text
from twinfed.engines.nvflare.job import DIFFERENCES
from twinfed.engines.nvflare.site_file import read_site_file

logger = logging.getLogger(__name__)


def main() -> None:
    """Take part in one job, until it is over."""
    import nvflare.client as flare
    from nvflare.app_common.abstract.fl_model import FLModel

    flare.init()
    name = flare.get_site_name()
    site: Any = None
    ended = "finished"
    try:
        while flare.is_running():
            received = flare.receive()
            if received is None:
                break
            try:
                site = site or _opened(name)
                answer = _answer(site, flare.get_task_name(), received)
            except FAULTS as error:
                logger.warning("%s: %s", name, error)
                if site is not None:
                    site.in_trouble(error)
                answer = FLModel(params={}, metrics={}, meta=write_text({"trouble": " ".join(str(error).split())}))
            flare.send(answer)
            if site is not None:
                site.make_twin()
    except Stopped:
        ended = "stopped"
        raise
    finally:
        if site is not None:
            site.finish(ended)


def _opened(name: str) -> Any:
    from twinfed.engines.nvflare.site_part import SitePart  # torch with it: seconds

    settings = read_site_file(name)
    site = SitePart(name, settings)
    if settings.low_priority:
        lower_priority()
    return site


def _answer(site: Any, task: str, received: Any) -> Any:
    from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

    content = told(received.meta)
    if task == REGISTER:
        return FLModel(params={}, meta=write_text(site.register(content)))
    if task == "validate":
        return FLModel(metrics=site.evaluate(content, received.params), meta=write_text({}))
    if task == "submit_model":
        return FLModel(params=site.local_model() or {}, meta=write_text({}))
    arrays, said = site.train(content, received.params, content["form"])
    full = said["form"] != DIFFERENCES
    return FLModel(params=arrays, params_type=ParamsType.FULL if full else ParamsType.DIFF, meta=write_text(said))


if __name__ == "__main__":
    main()
