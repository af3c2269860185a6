"""Maps English contractions without apostrophes to the spelling with apostrophes.

The VQA evaluations apply this map in two versions: VQAv2 and TextVQA use apostrophes everywhere,
VizWiz's program uses backticks in all but a few words. Sources:
https://github.com/GT-Vision-Lab/VQA and VizWiz's evaluation. Keys with capitals are omitted,
since text is lower case when they are looked up.
"""

# Words in which one apostrophe is missing.
_WORDS = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock
oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone's something'd
that's there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't
what'll what're what's what've when's where'd where's where've who'd who'll who's who've why'll
why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
# Words with two apostrophes, of which either may be missing.
_DOUBLE = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've
someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
"""
# Keys of the original that the rules above do not produce, including its typing errors.
_IRREGULAR = {
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "somebody'd": "somebodyd",
    "someonell": "someone'll",
    "somethingll": "something'll",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
}
# VizWiz's program uses apostrophes in these results and in this key.
_VIZWIZ_APOSTROPHES = {"ain't", "aren't", "can't", "could've", "couldn't", "we've", "where's"}
_VIZWIZ_APOSTROPHES |= {"who've"}
_VIZWIZ_KEYS = {"couldn'tve", "hadn'tve"}


def _without(word: str, index: int) -> str:
    """``word`` without its apostrophe number ``index``."""
    parts = word.split("'")
    return "'".join([*parts[:index], parts[index] + parts[index + 1], *parts[index + 2 :]])


def _table() -> dict[str, str]:
    table = {word.replace("'", ""): word for word in _WORDS.split()}
    for word in _DOUBLE.split():
        table |= {_without(word, index): word for index in range(2)}
    return table | _IRREGULAR


def _backticks(word: str) -> str:
    return word.replace("'", "`")


CONTRACTIONS = _table()
VIZWIZ_CONTRACTIONS = {
    key if key in _VIZWIZ_KEYS else _backticks(key): (
        word if word in _VIZWIZ_APOSTROPHES else _backticks(word)
    )
    for key, word in CONTRACTIONS.items()
}
