"""The prefix of an item's id by its type (contract section 4.2). Items of other types get no id."""

from collections.abc import Mapping

_CALLS = {
    "a2a_preview_call": "a2a",
    "apply_patch_call": "ap",
    "azure_ai_search_call": "ais",
    "azure_function_call": "azf",
    "bing_custom_search_preview_call": "bcs",
    "bing_grounding_call": "bg",
    "browser_automation_preview_call": "ba",
    "computer_call": "cu",
    "custom_tool_call": "ctc",
    "fabric_dataagent_preview_call": "fda",
    "function_call": "fc",
    "local_shell_call": "lsh",
    "openapi_call": "oa",
    "program": "prog",
    "sharepoint_grounding_preview_call": "sp",
    "shell_call": "lsh",
}

ITEM_PREFIXES: Mapping[str, str] = {
    **_CALLS,
    **{f"{kind}_output": f"{prefix}o" for kind, prefix in _CALLS.items()},
    "additional_tools": "adt",
    "code_interpreter_call": "ci",
    "compaction": "cmp",
    "compaction_summary": "cmp",
    "file_search_call": "fs",
    "image_generation_call": "ig",
    "mcp_approval_request": "mcpr",
    "mcp_approval_response": "mcpa",
    "mcp_call": "mcp",
    "mcp_list_tools": "mcpl",
    "memory_search_call": "mem",
    "message": "msg",
    "oauth_consent_request": "oauth",
    "output_message": "om",
    "reasoning": "rs",
    "structured_outputs": "fco",
    "tool_search_call": "ts",
    "tool_search_output": "tso",
    "web_search_call": "ws",
    "workflow_action": "wfa",
}
