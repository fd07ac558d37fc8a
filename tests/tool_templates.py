"""Minimal chat templates, each in the tool format of a model family, and tokens that some of them have of their own."""

HERMES = """{%- if tools %}<|im_start|>system
Use <tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools> by <tool_call></tool_call>.<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA_3 = """{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{% if tools and loop.first %}{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}{% if message.tool_calls %}\
{"name": "{{ message.tool_calls[0].function.name }}", "parameters": \
{{ message.tool_calls[0].function.arguments | tojson }}}{% else %}\
{{ message.content }}{% endif %}<|eot_id|>{% endfor %}\
{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

MISTRAL = """{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}\
{% for message in messages %}{% if message.role == "user" %}[INST]{{ message.content }}[/INST]\
{% elif message.tool_calls %}[TOOL_CALLS][\
{% for call in message.tool_calls %}\
{% if call.id | length != 9 %}{{ raise_exception("ids have nine letters") }}{% endif %}\
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}\
{% if not loop.last %}, {% endif %}{% endfor %}]</s>{% elif message.role == "tool" %}[TOOL_RESULTS]{"content": \
{{ message.content | tojson }}, "call_id": "{{ message.tool_call_id }}"}[/TOOL_RESULTS]{% else %}{{ message.content }}\
{% endif %}{% endfor %}"""

MISTRAL_NAMES = """{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}\
{% for message in messages %}\
{% if message.role == "user" %}[INST]{{ message.content }}[/INST]{% elif message.tool_calls %}\
{% for call in message.tool_calls %}[TOOL_CALLS]{{ call.function.name }}[ARGS]{{ call.function.arguments | tojson }}\
{% endfor %}</s>{% else %}{{ message.content }}{% endif %}{% endfor %}"""

PLAIN = """{% for message in messages %}<|{{ message.role }}|>{{ message.content }}
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
