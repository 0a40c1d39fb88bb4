"""Build hook: a wheel carries the Julia package beside the Python one, as `homojl_julia/`."""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class JuliaFolderHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict) -> None:
        if version != "editable":
            build_data["force_include"]["julia"] = "homojl_julia"
