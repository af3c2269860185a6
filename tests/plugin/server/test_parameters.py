"""Parameters of a request: the exact bounds of each, and the resulting mlx-vlm arguments."""

from types import SimpleNamespace

import mlx_vlm.models.moxin  # noqa: F401  (puts the server's additions in place)
import pytest
from mlx_vlm.server import AnthropicRequest, ChatRequest, OpenAIRequest
from mlx_vlm.server.runtime import runtime

from mlx_vlm_moxin.plugin.server import parameters
from mlx_vlm_moxin.plugin.server.errors import BadRequestError
from mlx_vlm_moxin.plugin.server.parameters import build_gen_args, check, stop_strings

VOCAB_SIZE = 100
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def chat(**values) -> ChatRequest:
    return ChatRequest(**{**CHAT, **values})


def refusal(request, vocab_size: int = VOCAB_SIZE) -> str:
    with pytest.raises(BadRequestError) as caught:
        check(request, vocab_size)
    return str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0},
        {"temperature": 2},
        {"top_p": 0},
        {"top_p": 1},
        {"min_p": 0},
        {"min_p": 1},
        {"top_n_sigma": 0},
        {"top_n_sigma": 1000},
        {"typical_p": 0},
        {"typical_p": 1},
        {"top_k": VOCAB_SIZE - 1},
        {"max_tokens": 1},
        {"max_completion_tokens": 1},
        {"seed": 0},
        {"resize_shape": [1]},
        {"repetition_penalty": 0.01},
        {"n": 1},
        {"best_of": 1},
        {"logit_bias": {"0": -1, str(VOCAB_SIZE - 1): 0.5}},
        {"logit_bias": {}},
        {"top_logprobs": 0},
        {"background": False},
    ],
    ids=str,
)
def test_values_at_the_ends_of_their_ranges_are_accepted(values):
    check(chat(**values), VOCAB_SIZE)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 2.01},
        {"temperature": -0.01},
        {"top_p": 1.01},
        {"top_p": -0.01},
        {"min_p": 1.01},
        {"min_p": -0.01},
        {"top_n_sigma": 1000.5},
        {"top_n_sigma": -0.01},
        {"typical_p": 1.01},
        {"typical_p": -0.01},
        {"top_k": VOCAB_SIZE},
        {"max_tokens": 0},
        {"max_completion_tokens": 0},
        {"max_completion_tokens": 1.5},
        {"max_completion_tokens": True},
        {"resize_shape": [0]},
        {"repetition_penalty": 0},
        {"n": 2},
        {"best_of": 2},
        {"logit_bias": {str(VOCAB_SIZE): 1}},
        {"logit_bias": {"-1": 1}},
        {"logit_bias": {"a": 1}},
        {"logit_bias": {"1": float("inf")}},
        {"logit_bias": {"1": "a"}},
        {"frequency_penalty": float("nan")},
        {"background": True},
        {"messages": []},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"functions": [{"name": "f"}]},
    ],
    ids=str,
)
def test_values_beyond_them_are_refused_by_name(values):
    assert next(iter(values)) in refusal(chat(**values))


@pytest.mark.parametrize(
    "values",
    [{"min_p": True}, {"min_p": "1"}, {"seed": 0.5}, {"top_logprobs": "2"}, {"top_logprobs": 0.5}],
    ids=str,
)
def test_fields_that_the_request_model_does_not_check_are_checked_here(values):
    message = refusal(AnthropicRequest(**CHAT, max_tokens=1, **values))
    assert message.startswith(f"{next(iter(values))}=")


def test_the_refusal_of_a_bias_names_the_largest_id():
    message = refusal(chat(logit_bias={str(VOCAB_SIZE): 1}))
    assert message.endswith(f"its keys must be token ids from 0 to {VOCAB_SIZE - 1}")


@pytest.mark.parametrize(
    ("server_has", "wanted", "part"),
    [
        (3, 3, None),
        (3, 4, "this server returns 3; start it with --top-logprobs-k 4"),
        (0, 20, "this server returns 0; start it with --top-logprobs-k 20"),
        (20, 21, "it must be from 0 to 20"),
    ],
)
def test_log_probabilities_are_limited_to_what_the_server_computes(
    monkeypatch, server_has, wanted, part
):
    monkeypatch.setenv("TOP_LOGPROBS_K", str(server_has))
    # mlx-vlm's field allows up to 20.
    request = ChatRequest.model_construct(**CHAT, top_logprobs=wanted, logprobs=True)
    if part is None:
        check(request, VOCAB_SIZE)
    else:
        assert part in refusal(request)


def test_top_logprobs_need_logprobs(monkeypatch):
    monkeypatch.setenv("TOP_LOGPROBS_K", "5")
    check(chat(top_logprobs=2, logprobs=True), VOCAB_SIZE)
    assert "it needs logprobs=true" in refusal(chat(top_logprobs=2))


@pytest.mark.parametrize(
    "values", [{"top_logprobs": 1}, {"include": ["message.output_text.logprobs"]}], ids=str
)
def test_log_probabilities_are_refused_by_an_endpoint_that_returns_none(monkeypatch, values):
    monkeypatch.setenv("TOP_LOGPROBS_K", "5")
    request = OpenAIRequest(model="m", input="hi", **values)
    assert "/v1/chat/completions only" in refusal(request)
    check(OpenAIRequest(model="m", input="hi", include=["other"]), VOCAB_SIZE)


@pytest.mark.parametrize(
    ("stop", "stops"), [("a", ["a"]), (["a", "b"], ["a", "b"]), (None, []), ([], [])]
)
def test_stop_strings_may_be_text_or_a_list(stop, stops):
    assert stop_strings(chat(stop=stop)) == stops


def test_anthropics_stop_sequences_replace_an_extra_stop():
    request = AnthropicRequest(**CHAT, max_tokens=1, stop_sequences=["a"], stop="b")
    assert stop_strings(request) == ["a"]


@pytest.mark.parametrize("stop", [5, "", [""], ["a", 5], {"a": 1}], ids=str)
def test_other_values_of_stop_are_refused(stop):
    with pytest.raises(BadRequestError, match="stop="):
        stop_strings(chat(stop=stop))


class TestArguments:
    """The arguments that the wrapper of mlx-vlm's ``_build_gen_args`` adds."""

    @pytest.fixture(autouse=True)
    def no_generator(self, monkeypatch):
        monkeypatch.setattr(runtime, "response_generator", None)

    @staticmethod
    def arguments(request, processor):
        def original(request, processor, *args, **kwargs):
            return SimpleNamespace(args=args, kwargs=kwargs, max_tokens=7, min_p=0.0, seed=None)

        return build_gen_args(original)(request, processor, "tenant", key="value")

    def test_mlx_vlms_own_arguments_pass_through(self, processor):
        arguments = self.arguments(chat(), processor)
        assert (arguments.args, arguments.kwargs) == (("tenant",), {"key": "value"})

    def test_extra_fields_reach_the_sampler(self, processor):
        request = AnthropicRequest(**CHAT, max_tokens=1, min_p=0.25, seed=5)
        arguments = self.arguments(request, processor)
        assert (arguments.min_p, arguments.seed) == (0.25, 5)

    def test_a_seed_is_drawn_where_none_is_given(self, processor):
        seeds = {self.arguments(chat(), processor).seed for _ in range(3)}
        assert len(seeds) == 3
        assert all(0 <= seed < 2**32 for seed in seeds)
        assert self.arguments(chat(seed=5), processor).seed is None  # as mlx-vlm has read it

    def test_max_completion_tokens_is_used_unless_max_tokens_is_given(self, processor):
        assert self.arguments(chat(), processor).max_tokens == 7
        assert self.arguments(chat(max_completion_tokens=3), processor).max_tokens == 3
        request = chat(max_completion_tokens=3, max_tokens=2)
        assert self.arguments(request, processor).max_tokens == 7

    def test_only_anthropics_answers_keep_the_stop_string(self, processor):
        assert self.arguments(chat(stop="x"), processor).include_stop is False
        request = AnthropicRequest(**CHAT, max_tokens=1, stop_sequences=["x"])
        arguments = self.arguments(request, processor)
        assert (arguments.include_stop, arguments.stop) == (True, ["x"])

    def test_log_probabilities_are_computed_for_every_request(self, processor):
        assert self.arguments(chat(), processor).logprobs is True

    def test_a_generator_that_was_started_before_the_model_is_adopted(self, processor, monkeypatch):
        adopted = []
        monkeypatch.setattr(runtime, "response_generator", "the generator")
        monkeypatch.setattr(parameters, "adopt", adopted.append)
        self.arguments(chat(), processor)
        assert adopted == ["the generator"]

    def test_the_bounds_are_those_of_the_processors_vocabulary(self, processor):
        self.arguments(chat(top_k=processor.vocab_size - 1), processor)
        with pytest.raises(BadRequestError, match="top_k"):
            self.arguments(chat(top_k=processor.vocab_size), processor)

    def test_what_mlx_vlm_refuses_is_the_clients_error(self, processor):
        def original(*args, **kwargs):
            raise ValueError("no such schema")

        with pytest.raises(BadRequestError, match="no such schema"):
            build_gen_args(original)(chat(), processor)

    def test_other_models_are_left_alone(self):
        arguments = self.arguments(chat(n=2), object())
        assert not hasattr(arguments, "stop")
