"""Chat templates: the environment that the Hub expects, and what a hostile one meets."""

import pytest

from tmac_llm.chat_template import MAX_LOOPS, ChatTemplate
from tmac_llm.errors import TemplateError

SYSTEM = {"role": "system", "content": "Be kind."}
USER = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "Hi"}

ALTERNATING = """\
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate') }}
{%- endif %}
{{- '[' + m.role + ':' + m.content + ']' }}
{%- endfor %}"""


def render(source, messages=(USER,), **variables):
    return ChatTemplate(source, "chat_template.jinja").render(messages, **variables)


def test_a_llama_3_like_template():
    source = (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start|>' + message['role'] + '\n\n' + message['content'] | trim + '<|eot|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n\n' }}{% endif %}"
    )
    text = render(source, [SYSTEM, USER], bos_token="<s>", add_generation_prompt=True)
    assert text == (
        "<s><|start|>system\n\nBe kind.<|eot|><|start|>user\n\nHello<|eot|><|start|>assistant\n\n"
    )


def test_block_lines_leave_no_white_space():
    assert render("{% for m in messages %}\n    {% if true %}\nx\n    {% endif %}\n{% endfor %}\n") == "x\n"


def test_break_and_loop_variables():
    source = (
        "{% for i in range(9) %}{{ i }}/{{ loop.length }} {% if i == 1 %}{% break %}{% endif %}{% endfor %}"
    )
    assert render(source) == "0/9 1/9 "


def test_tojson_escapes_nothing_for_html_or_ascii():
    messages = [{"role": "user", "content": "<é & \"'>"}]
    assert render("{{ messages[0].content | tojson }}", messages) == '"<é & \\"\'>"'


def test_tojson_keeps_the_order_of_keys():
    assert render("{{ tools | tojson }}", tools=[{"b": 1, "a": 2}]) == '[{"b": 1, "a": 2}]'


def test_strftime_now():
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10


def test_generation_blocks_are_transparent():
    assert render("{% generation %}a{{ messages[0].content }}{% endgeneration %}b") == "aHellob"


def test_unknown_variables_are_false_and_empty():
    assert render("{% if tools is defined and tools %}t{% endif %}{{ nothing }}.") == "."


def test_messages_of_one_role_are_joined_where_the_template_wants_turns():
    assert render(ALTERNATING, [USER, USER, ANSWER]) == "[user:Hello\n\nHello][assistant:Hi]"


def test_a_refused_system_message_goes_into_the_first_user_message():
    assert render(ALTERNATING, [SYSTEM, USER]) == "[user:Be kind.\n\nHello]"


def test_a_system_message_that_is_silently_dropped_goes_there_too():
    source = "{% for m in messages if m.role != 'system' %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
    assert render(source, [SYSTEM, USER]) == "[user:Be kind.\n\nHello]"


def test_messages_that_the_template_takes_are_not_changed():
    source = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    assert render(source, [SYSTEM, USER, USER]) == "[Be kind.][Hello][Hello]"


def test_adaptation_can_be_switched_off():
    template = ChatTemplate(ALTERNATING, "chat_template.jinja")
    with pytest.raises(TemplateError, match="line 3 of the chat template: Conversation roles must alternate"):
        template.render([USER, USER], adapt=False)


def test_what_cannot_be_adapted_is_the_complaint_of_the_template():
    with pytest.raises(TemplateError, match="line 1 of the chat template: no no"):
        render("{{ raise_exception('no\nno') }}")


def test_a_syntax_error_names_file_and_line():
    with pytest.raises(TemplateError, match=r"^chat_template.jinja: line 2 of the chat template: "):
        render("a\n{% for %}")


def test_an_error_while_rendering_names_the_line():
    with pytest.raises(TemplateError, match=r"line 3 of the chat template: .*no attribute 'text'"):
        render("a\n\n{{ messages[0].content.text.x }}")


HOSTILE = {
    "repeated text": "{{ 'a' * 1000000000 }}",
    "repeated the other way": "{{ 1000000000 * 'a' }}",
    "repeated list": "{{ ([1] * 1000000000) | length }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "nested loops": "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
    "doubling with +": "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubling with ~": "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling a list": "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "nesting lists": "{% set n = namespace(s=1) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}",
    "join": "{% set a = 'a' * 100000 %}{{ a | join(a) }}",
    "join method": "{% set a = 'a' * 100000 %}{{ a.join(a) }}",
    "replace": "{% set a = 'a' * 100000 %}{{ a | replace('a', a) }}",
    "replace method": "{% set a = 'a' * 100000 %}{{ a.replace('a', a) }}",
    "padding filter": "{{ 'x' | center(10000000000) }}",
    "padding method": "{{ 'x'.ljust(10000000000) }}",
    "format": "{{ '{:>9999999999}'.format(1) }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "indent": "{{ 'x' | indent(10000000000, true) }}",
    "much output": "{% for i in range(90000) %}{{ 'a' * 1000 }}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "changing the messages": "{{ messages.append(1) }}",
    "reading files": "{% include '/etc/passwd' %}",
    "deep nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_templates_end_in_one_line(source):
    with pytest.raises(TemplateError) as caught:
        render(source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_messages_larger_than_any_prompt():
    template = ChatTemplate("{{ messages[0].content }}", "x")
    with pytest.raises(TemplateError, match=r"the messages have 5000000 characters.*shorten the prompt"):
        template.render([{"role": "user", "content": "a" * 5_000_000}])


def test_an_unsafe_attribute_is_empty_text():
    assert render("{{ messages.__class__ }}") == ""


def test_a_loop_may_be_as_long_as_a_real_conversation():
    assert MAX_LOOPS > 10_000
    assert render("{% for m in messages %}x{% endfor %}", [USER] * 10_000) == "x" * 10_000


def test_each_rendering_has_its_own_count_of_loops():
    template = ChatTemplate("{% for i in range(90000) %}{% endfor %}.", "t")
    for _ in range(MAX_LOOPS // 90_000 + 2):
        assert template.render([USER]) == "."
