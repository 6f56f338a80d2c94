"""Full-text search for English pages with Chinese terms in them.

Chinese is written without spaces, so both the index and the query must be cut. A word segmenter can only cut the index: it does not
run in the reader's browser, and a query such as 图像超分辨率 then stays one term that no page has. Overlapping pairs of characters
need no dictionary and are cut alike on both sides. The browser's own segmenter, where it has one, first parts the query into words,
so that a page with 图像 here and 超分辨率 there is found as well; a page matches when it has every pair of every word.
"""
import re

from sphinx.search.en import SearchEnglish

HAN_RUN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]+")


def han_pairs(run: str) -> list[str]:
    """Return the overlapping pairs of a run of Chinese characters, or the one character itself."""
    return [run[i : i + 2] for i in range(len(run) - 1)] or [run]


class SearchEnglishChinese(SearchEnglish):
    """English words stemmed as usual, Chinese runs as pairs; single characters are indexed as well.

    ``language_name`` stays "English": the name of the stemmer in the browser is made from it.
    """

    lang = "en_zh"
    js_splitter_code = """
const hanWords = (run) =>
  typeof Intl.Segmenter === "undefined"
    ? [run]
    : Array.from(new Intl.Segmenter("zh", { granularity: "word" }).segment(run), (s) => s.segment);
const hanPairs = (word) =>
  word.length < 2 ? [word] : Array.from({ length: word.length - 1 }, (_, i) => word.slice(i, i + 2));
var splitQuery = (query) =>
  query
    .split(/[^\\p{Letter}\\p{Number}_\\p{Emoji_Presentation}]+/gu)
    .flatMap((term) => term.split(/([\\u3400-\\u4dbf\\u4e00-\\u9fff]+)/))
    .filter((term) => term)
    .flatMap((term) =>
      /^[\\u3400-\\u4dbf\\u4e00-\\u9fff]/.test(term) ? hanWords(term).flatMap(hanPairs) : [term],
    );
"""

    def split(self, input: str) -> list[str]:
        words = self._word_re.findall(HAN_RUN.sub(" ", input))
        for run in HAN_RUN.findall(input):
            words += han_pairs(run)
            words += run
        return words
