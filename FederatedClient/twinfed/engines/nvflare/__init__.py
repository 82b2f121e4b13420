"""NVFlare carries the messages; `twinfed` decides what is trained, checked and aggregated.

Without nvflare installed one can import `job`, `exchange`, `job_federation`, `site_file` and `site_part`: all that
decides anything. Only `workflow`, `executor`, `site_script` and the programs that `processes` starts need it.
"""
