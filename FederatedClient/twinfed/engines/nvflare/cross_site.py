"""Cross-site evaluation: every site scores the models on its own test cases; the matrix is written as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.workflows.model_controller import ModelController

from twinfed.engines.nvflare.exchange import FINAL, INITIAL, write_text
from twinfed.engines.nvflare.job import SITE_MODELS
from twinfed.engines.nvflare.matrix import FILE, checked_scores
from twinfed.engines.nvflare.workflow import federation_of

TIMEOUT = 6 * 3600


class CrossSite(ModelController):
    """A workflow after the rounds. A site that does not answer, or answers nonsense, has no entry in the matrix."""

    def __init__(self) -> None:
        super().__init__(persistor_id="", ignore_result_error=True)

    def run(self) -> None:
        federation, settings = federation_of(self)
        content = federation.message()
        matrix = {
            INITIAL: self._scores(INITIAL, federation.first_model(), content),
            FINAL: self._scores(FINAL, federation.model(), content),
        }
        if settings["cross_site"] == SITE_MODELS:
            ask = FLModel(params={}, meta=write_text(content))
            for answer in self.send_model_and_wait(AppConstants.TASK_SUBMIT_MODEL, data=ask, timeout=TIMEOUT):
                if answer.params:
                    site = str(answer.meta["client_name"])
                    matrix[site] = self._scores(site, answer.params, content)
        path = Path(self.get_run_dir()) / AppConstants.CROSS_VAL_DIR / FILE
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(matrix, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        self.info(f"cross-site evaluation: {path}")

    def _scores(self, name: str, params: Any, content: dict[str, Any]) -> dict[str, dict[str, float]]:
        """Site -> what it measured of a model."""
        data = FLModel(params_type=ParamsType.FULL, params=params, meta=write_text({**content, "owner": name}))
        answers = self.send_model_and_wait(AppConstants.TASK_VALIDATION, data=data, timeout=TIMEOUT)
        found = {str(one.meta["client_name"]): checked_scores(one.metrics) for one in answers}
        return {site: scores for site, scores in sorted(found.items()) if scores}
