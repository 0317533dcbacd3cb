"""Chat templates give the published text, whatever file they stand in, and can do nothing else."""

import json

import pytest

from flexjax.engine.chat import conversations, load_chat_templates
from flexjax.refusal import Refusal

TALK = [{"role": "user", "content": "Hi <b> é"}, {"role": "assistant", "content": "Well "}]
CHATML = """{{ bos_token }}{% for message in messages %}
    {% if message.role == 'nobody' %}
        {% continue %}
    {% endif %}
    {{- '<' + message['role'] + '>' }}
    {%- generation %}{{ message['content'] | trim }}{% endgeneration %}

{% endfor %}
{% if add_generation_prompt %}<assistant>{% endif %}"""


def templates(directory, chat_template=None, **files):
    fields = {"bos_token": "<s>"} | ({} if chat_template is None else {"chat_template": chat_template})
    (directory / "tokenizer_config.json").write_text(json.dumps(fields))
    for name, text in files.items():
        path = directory / name.replace("__", "/").replace("_jinja", ".jinja").replace("_json", ".json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return load_chat_templates(directory)


def test_a_template_in_the_published_dialect(tmp_path):
    assert templates(tmp_path, CHATML).render(TALK) == "<s><user>Hi <b> é\n<assistant>Well\n<assistant>"
    assert templates(tmp_path, CHATML).render(TALK, add_generation_prompt=False).endswith("<assistant>Well\n")


def test_filters_and_functions(tmp_path):
    source = "{{ tools | tojson }}{{ strftime_now('%Y')[:2] }}{{ documents is none }}{{ deep | tojson(indent=1) }}"
    got = templates(tmp_path, source).render(TALK, tools=[{"a": "<é>'"}], deep={"b": 1})
    assert got == '[{"a": "<é>\'"}]20True{\n "b": 1\n}'


def test_the_last_message_can_be_continued(tmp_path):
    going_on = dict(add_generation_prompt=False, continue_final_message=True)
    assert templates(tmp_path, CHATML).render(TALK, **going_on).endswith("\n<assistant>Well")  # It trims.
    plain = templates(tmp_path, "{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert plain.render(TALK, **going_on) == "[Hi <b> é][Well "
    parts = templates(tmp_path, "{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}")
    said = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert parts.render(said, **going_on) == "[a][b"
    with pytest.raises(Refusal, match="add_generation_prompt=False"):
        plain.render(TALK, continue_final_message=True)
    with pytest.raises(Refusal, match="writes out the last message"):
        templates(tmp_path, "nothing of it").render(TALK, **going_on)


NAMED = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]


@pytest.mark.parametrize(
    ("saved", "files", "asked", "text"),
    [
        (NAMED, {}, {}, "plain"),
        (NAMED, {}, {"tools": [{}]}, "tools"),
        (NAMED, {}, {"tools": []}, "plain"),
        (NAMED, {}, {"chat_template": "tool_use"}, "tools"),
        ({"default": "plain"}, {}, {}, "plain"),
        (NAMED, {}, {"chat_template": "{{ messages | length }}"}, "2"),
        ("old", {"chat_template_jinja": "\ufefffile"}, {}, "file"),
        ("old", {"additional_chat_templates__rag_jinja": "rag"}, {"chat_template": "rag"}, "rag"),
        (None, {"chat_template_json": '{"chat_template": "of a processor"}'}, {}, "of a processor"),
    ],
)
def test_where_templates_stand(tmp_path, saved, files, asked, text):
    assert templates(tmp_path, saved, **files).render(TALK, **asked) == text


@pytest.mark.parametrize(
    ("saved", "asked", "why"),
    [
        (None, {}, "has no chat template.*Pass one as chat_template"),
        ([], {}, "has no chat template"),
        (NAMED, {"chat_template": "rag"}, r"\['default', 'tool_use'\], asked for is 'rag'"),
        ([{"name": "rag", "template": "x"}], {}, r"no default one.*\['rag'\]"),
        (
            "{{ raise_exception('Roles must alternate.') }}",
            {},
            r"config.json refuses .*Roles must alternate\.",
        ),
        ("a\n{% if %}", {}, r"tokenizer_config.json is no template: line 2"),
        ("{{ messages + 1 }}", {}, r"tokenizer_config.json fails .*TypeError"),
        ("{{ nobody.name }}", {}, r"tokenizer_config.json fails .*UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", {}, "SecurityError"),
        ("{{ messages.__class__ }}", {}, "SecurityError"),
        ("{{ raise_exception.__globals__ }}", {}, "SecurityError"),
        ("{% set x = messages.append(1) %}", {}, "SecurityError"),
        ("{{ '{0.__class__}'.format(1) }}", {}, "SecurityError"),
        ("x", {"helper": print}, "helper is a builtin_function"),
    ],
)
def test_what_cannot_be_rendered_is_refused(tmp_path, saved, asked, why):
    with pytest.raises(Refusal, match=why):
        templates(tmp_path, saved).render(TALK, **asked)


@pytest.mark.parametrize("value", [3, ["text"], [{"name": "default"}], {"default": 1}])
def test_a_template_of_another_form_is_refused(tmp_path, value):
    with pytest.raises(Refusal, match=r"chat_template in .*tokenizer_config\.json must be"):
        templates(tmp_path, value)


def test_a_pointer_in_the_place_of_a_template_is_named(tmp_path):
    with pytest.raises(Refusal, match=r"chat_template\.jinja is a Git LFS pointer"):
        templates(tmp_path, chat_template_jinja="version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "at least one message"),
        ("Hi", "at least one message"),
        (["Hi"], "message 0 is 'Hi'"),
        ([{"content": "Hi"}], "message 0 is"),
        ([{"role": "user"}], "message 0, of 'user', has none"),
        ([TALK[0], {"role": "user", "content": 3}], "message 1 is '3'"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "parts"),
    ],
)
def test_messages_of_another_form_are_refused(tmp_path, messages, why):
    with pytest.raises(Refusal, match=why):
        templates(tmp_path, CHATML).render(messages)


def test_an_answer_with_tool_calls_needs_no_content(tmp_path):
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    source = "{{ messages[0].tool_calls[0].function.arguments | tojson }}"
    assert templates(tmp_path, source).render([call]) == '{"x": 1}'


def test_one_conversation_is_a_batch_of_one():
    assert conversations(TALK) == [TALK]
    assert conversations([TALK, TALK[:1]]) == [TALK, TALK[:1]]
    with pytest.raises(Refusal, match="list of messages"):
        conversations([])


def test_a_variable_that_the_template_does_not_read_is_told(tmp_path, caplog):
    templates(tmp_path, "{{ known }}").render(TALK, known=1, enable_thinkin=False)
    assert "does not read enable_thinkin." in caplog.text
