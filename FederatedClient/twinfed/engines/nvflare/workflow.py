"""The server under NVFlare: its FedAvg workflow, where our checks and strategies take the place of its average."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from nvflare.apis.fl_component import FLComponent
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator
from nvflare.app_common.workflows.fedavg import FedAvg

from twinfed.engines.nvflare.exchange import REGISTER, told, write_text
from twinfed.engines.nvflare.job import read_job
from twinfed.engines.nvflare.job_federation import JobFederation, RoundFailed
from twinfed.errors import InputError, Refusal

FOLDER = "federation"
"""Of the aggregator, in the job's folder at the server: it is among what the job's result holds."""


class FederationFolder(FLComponent):
    """The job's federation, which its workflows share. Opened by the first that asks."""

    def __init__(self) -> None:
        super().__init__()
        self._opened: JobFederation | None = None

    def open(self, app: str, run: str) -> JobFederation:
        """`app`, `run`: the job's folders at the server. Raises InputError for a model that cannot be read."""
        if self._opened is None:
            config, self.settings = read_job(Path(app) / "config")
            self._opened = JobFederation(Path(run) / FOLDER, config, self.settings["form"])
        return self._opened


class CheckedAggregator(ModelAggregator):
    """Checks each update as it arrives, and hands the rest to the federation's strategy."""

    federation: JobFederation

    def accept_model(self, model: FLModel) -> None:
        """Take an update into the round; one that is refused is logged with the reason, and the round goes on."""
        site = str(model.meta.get("client_name"))
        if why := self.federation.take(site, model.params, model.meta):
            self.warning(f"refused the update of {site}: {why}")
        else:
            self.info(f"accepted the update of {site}")

    def aggregate_model(self) -> FLModel:
        """The next model. Raises RoundFailed, which ends the job, where a round came to nothing."""
        if not self.federation.close_round():
            self.warning("the update of the site whose turn it was is refused; the turn passes on")
        return message(self.federation)

    def reset_stats(self) -> None:
        """Rounds are kept by the federation."""


class Rounds(FedAvg):
    """NVFlare's FedAvg with `CheckedAggregator`; sites that are visited in turn (strategy transfer) are asked one by
    one, which is cyclic weight transfer with each update blended in."""

    def __init__(self) -> None:
        super().__init__(num_clients=None, persistor_id="", aggregator=CheckedAggregator(), ignore_result_error=True)

    def run(self) -> None:
        """Register the sites, then round after round; again for those that a site whose turn it was came to nothing."""
        self.federation, _ = federation_of(self)
        self.aggregator.federation, self.aggregator.fl_ctx = self.federation, self.fl_ctx
        self._register()
        self.federation.begin()
        while (left := self.federation.rounds_left) and not self.abort_signal.triggered:
            self.start_round, self.num_rounds = self.federation.number - 1, left
            super().run()

    def load_model(self) -> FLModel:
        return message(self.federation)

    def save_model(self, model: FLModel) -> None:
        """The federation has stored it already, under its hash."""

    def sample_clients(self, num_clients: int | None = None) -> list[str]:
        """The sites that are to train now. Raises RoundFailed for none: NVFlare would ask all of them."""
        asked = self.federation.asked([client.name for client in self.engine.get_clients()])
        if not asked:
            raise RoundFailed(f"Round {self.federation.number}: none of the sites that are to train is connected.")
        return asked

    def send_model(self, *args: Any, **options: Any) -> None:
        """As long as the federation's deadline gives the sites."""
        deadline = int(self.federation.config.deadline_minutes * 60)
        super().send_model(*args, **{**options, "timeout": min(deadline, 2**31 - 1)})

    def _register(self) -> None:
        """Ask every site how many training cases it has; those that cannot take part are logged."""
        content = self.federation.message()
        data = FLModel(params={}, meta=write_text({**content, "task": REGISTER}))
        self.send_model(task_name=REGISTER, data=data, callback=self._on_registered)
        while self.get_num_standing_tasks() and not self.abort_signal.triggered:
            time.sleep(self._task_check_period)

    def _on_registered(self, answer: FLModel) -> None:
        site = str(answer.meta.get("client_name"))
        try:
            content = told(answer.meta)
            if "trouble" in content:
                self.warning(f"{site} does not take part: {content['trouble']}")
                return
            self.federation.register(site, content)
            self.info(f"{site} takes part")
        except (Refusal, InputError) as error:
            self.warning(f"{site} does not take part: {error}")


def message(federation: JobFederation) -> FLModel:
    """The round's model with what the sites need to know."""
    return FLModel(params_type=ParamsType.FULL, params=federation.model(), meta=write_text(federation.message()))


def federation_of(controller: Any) -> tuple[JobFederation, dict[str, Any]]:
    """The job's federation and its settings, as its workflows share them."""
    holder: FederationFolder = controller.engine.get_component("federation")
    return holder.open(controller.get_app_dir(), controller.get_run_dir()), holder.settings
