"""What NVFlare runs at a site: its client API, with our script and nothing else."""

from __future__ import annotations

from nvflare.app_common.executors.client_api_executor import ClientAPIExecutor, ExecutionMode
from nvflare.client.config import ExchangeFormat

from twinfed.client.threads import sleep_while_waiting
from twinfed.engines.nvflare import site_script


class SiteExecutor(ClientAPIExecutor):
    """NVFlare's executor of scripts, bound to the script of this package: a job can name no other program.

    Arrays stay numpy's from end to end (RAW); a change of form on the way is what lets NVFlare drop updates silently.
    """

    def __init__(self) -> None:
        sleep_while_waiting()
        super().__init__(
            execution_mode=ExecutionMode.IN_PROCESS,
            task_script_path=site_script.__file__,
            params_exchange_format=ExchangeFormat.RAW,
            server_expected_format=ExchangeFormat.RAW,
        )
