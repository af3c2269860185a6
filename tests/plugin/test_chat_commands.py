"""mlx-vlm's chats: the current picture is passed on, and the end of input ends them."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from mlx_vlm_moxin.plugin import chat_commands
from mlx_vlm_moxin.plugin.chat_commands import ending_prompt, keeping_picture, last_picture

FILE = {"type": "file", "file": {"path": "/a.png", "meta": {"_type": "gradio.FileData"}}}
TEXT = {"type": "text", "text": "What is it?"}


def user(*parts) -> dict:
    return {"role": "user", "content": [*parts]}


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], None),
        ([user(TEXT)], None),
        ([user(FILE, TEXT), {"role": "assistant", "content": "A dog."}], "/a.png"),
        ([user(FILE), user(TEXT)], "/a.png"),
        ([user(FILE), user({"type": "file", "file": {"path": "/b.png"}}, TEXT)], "/b.png"),
        ([user({"path": "/c.png"})], "/c.png"),
        ([{"role": "user", "content": ("/d.png",)}, user(TEXT)], "/d.png"),
        ([{"role": "assistant", "content": [FILE]}, user(TEXT)], None),
        ([["question", "answer"]], None),
    ],
)
def test_the_last_picture_of_a_conversation_is_found(history, expected):
    assert last_picture(history) == expected


def test_a_question_without_a_picture_is_sent_with_the_last_one():
    sent = []

    def answer(message, history, temperature):
        sent.append((message, temperature))
        yield from ("re", "red")

    page = keeping_picture(answer)
    history = [user(FILE, TEXT)]
    assert [*page({"text": "Where?", "files": []}, history, 0)] == ["re", "red"]
    assert [*page({"text": "And this?", "files": ["/b.png"]}, history, 0)] == ["re", "red"]
    assert [*page({"text": "Hello", "files": []}, [], 0)] == ["re", "red"]
    assert [*page("Hello", history, 0)] == ["re", "red"]
    assert sent == [
        ({"text": "Where?", "files": ["/a.png"]}, 0),
        ({"text": "And this?", "files": ["/b.png"]}, 0),
        ({"text": "Hello", "files": []}, 0),
        ("Hello", 0),
    ]


class Prompt:
    """Replaces Rich's."""

    @classmethod
    def ask(cls, question):
        if question == "end":
            raise EOFError
        return question


def test_the_end_of_input_ends_the_process_without_an_error():
    ending = ending_prompt(Prompt)
    assert ending.ask("more") == "more"
    with pytest.raises(SystemExit) as caught:
        ending.ask("end")
    assert caught.value.code == 0


@pytest.mark.parametrize("is_main", [False, True])
def test_the_running_chats_are_changed_once(monkeypatch, is_main):
    made = []
    gradio = SimpleNamespace(Blocks=1, ChatInterface=lambda fn, **kwargs: made.append((fn, kwargs)))
    for name, values in (("chat", {"Prompt": Prompt}), ("chat_ui", {"gr": gradio})):
        module = ModuleType("__main__" if is_main else f"mlx_vlm.{name}")
        vars(module).update(values)
        if is_main:
            module.__spec__ = SimpleNamespace(name=f"mlx_vlm.{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        chat_commands.install()
        changed = {**vars(module)}
        chat_commands.install()
        assert vars(module) == changed
        if name == "chat":
            assert issubclass(module.Prompt, Prompt)
            with pytest.raises(SystemExit):
                module.Prompt.ask("end")
        else:
            module.gr.ChatInterface(fn=len, title="t")
            assert module.gr.Blocks == 1
            assert made[0][0].__wrapped__ is len
            assert made[0][1] == {"title": "t"}
