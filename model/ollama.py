"""ollama's Modelfile: where the weights are, the chat template in Go's syntax, where to stop."""

_SYSTEM = "<|system_start|>{{ .Content }}{{ if $.Tools }}<|tools_start|>{{ json $.Tools }}<|tools_end|>{{ end }}<|system_end|>"
_CALLS = (
    '{{ range .ToolCalls }}<|tool_call_start|>{"name": "{{ .Function.Name }}", "arguments": '
    "{{ json .Function.Arguments }}}<|tool_call_end|>{{ end }}"
)
_ASSISTANT = (
    "<|assistant_start|>{{ if and .Thinking (gt $place $last) }}<|think_start|>{{ .Thinking }}<|think_end|>{{ end }}"
    "{{ .Content }}" + _CALLS + "<|assistant_end|>"
)
CHAT = (
    '<|bos|>{{ $last := -1 }}{{ range $place, $_ := .Messages }}{{ if eq .Role "user" }}{{ $last = $place }}{{ end }}{{ end }}'
    "{{ range $place, $_ := .Messages }}"
    '{{ if eq .Role "system" }}' + _SYSTEM + "{{ end }}"
    '{{ if eq .Role "user" }}<|user_start|>{{ .Content }}<|user_end|>{{ end }}'
    '{{ if eq .Role "assistant" }}' + _ASSISTANT + "{{ end }}"
    '{{ if eq .Role "tool" }}<|tool_result_start|>{{ .Content }}<|tool_result_end|>{{ end }}'
    "{{ end }}<|assistant_start|>"
)
"""The template of dataset/chat.py again, up to where the answer begins. Tools stand in the system
message, and thoughts only behind the last question."""
TEXT = "<|bos|>{{ .Prompt }}"
"""For a model that has read documents alone: it continues a text."""


def modelfile(file_name: str, *, context: int, ends: list[str], completes: bool) -> str:
    """The text of a Modelfile.

    Args: file_name: the GGUF file beside it. context: tokens that the model can read. ends: names
    of the tokens that end an answer. completes: the model was only pretrained.
    """
    stops = "".join(f'PARAMETER stop "{end}"\n' for end in ends)
    return (
        f'FROM ./{file_name}\nTEMPLATE """{TEXT if completes else CHAT}"""\n{stops}'
        f"PARAMETER num_ctx {context}\nPARAMETER temperature 0\n"
    )
