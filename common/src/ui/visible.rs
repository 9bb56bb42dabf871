//! Escapes text from elsewhere on its way to a terminal or a log: names of files and
//! classes, and text from peers. A control character in it could move the cursor, clear
//! the screen or forge a line, so it is shown as an escape.

use std::fmt::{self, Write};

/// Replaces what was cut off.
const ELLIPSIS: char = '…';

/// The text with each character that is not itself visible replaced by an escape, as
/// Rust writes it (`\n`, `\u{202e}`): control characters, separators of lines and
/// paragraphs, directions, and characters without width. Letters of all scripts stay,
/// and so do the joiners between them.
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // Writing to a string does not fail.
    let _ = Visible(&mut out).write_str(text);
    out
}

/// The same in at most `most` characters, the last of which is an ellipsis if the text
/// was cut.
pub fn visible_within(text: &str, most: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(most));
    // Bytes and characters of the text that stays if an ellipsis must follow.
    let (mut length, mut keep) = (0, 0);
    for character in text.chars() {
        let start = shown.len();
        let _ = Visible(&mut shown).write_char(character);
        length += shown[start..].chars().count();
        if length > most {
            shown.truncate(keep);
            if most > 0 {
                shown.push(ELLIPSIS);
            }
            break;
        }
        // An escape is kept whole or not at all.
        if length < most {
            keep = shown.len();
        }
    }
    shown
}

/// The same for each line of a text.
pub(super) fn visible_lines(text: &str) -> String {
    text.split('\n').map(visible).collect::<Vec<_>>().join("\n")
}

/// Passes text on as [`visible`] does.
pub(super) struct Visible<W>(pub(super) W);

impl<W: Write> Write for Visible<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(is_hidden) {
            let (plain, from) = rest.split_at(at);
            self.0.write_str(plain)?;
            let mut chars = from.chars();
            if let Some(c) = chars.next() {
                write!(self.0, "{}", c.escape_default())?;
            }
            rest = chars.as_str();
        }
        self.0.write_str(rest)
    }
}

/// Whether a character has another effect than to show itself.
pub(super) fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            // Soft hyphen, Arabic letter mark, Hangul fillers, Mongolian vowel separator.
            '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{3164}' | '\u{ffa0}'
            // Zero width and direction marks, but for the two joiners; separators of
            // lines and paragraphs, embeddings and overrides; invisible operators, isolates.
            | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            // Byte order mark, interlinear annotations, tags.
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use rand_chacha::rand_core::RngCore;

    use super::*;
    use crate::seed;

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        for (text, shown) in [
            ("worker-3", "worker-3"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\x1b[2J\x07", "\\u{1b}[2J\\u{7}"),
            ("\u{9b}31m\x7f\0", "\\u{9b}31m\\u{7f}\\u{0}"),
            ("gpj.\u{202e}exe\u{2066}", "gpj.\\u{202e}exe\\u{2066}"),
            ("a\u{200b}b\u{feff}\u{2028}\u{2029}", "a\\u{200b}b\\u{feff}\\u{2028}\\u{2029}"),
            (
                "\u{0645}\u{06cc}\u{200c}\u{0634}\u{0648}\u{062f} 👩\u{200d}👧",
                "\u{0645}\u{06cc}\u{200c}\u{0634}\u{0648}\u{062f} 👩\u{200d}👧",
            ),
            ("übung 训练 обучение 🦀 C:\\x", "übung 训练 обучение 🦀 C:\\x"),
        ] {
            assert_eq!((visible(text), visible_within(text, 100)), (shown.to_owned(), shown.to_owned()));
        }
        assert_eq!(visible_lines("a\n\rb\n\n"), "a\n\\rb\n\n");
    }

    #[test]
    fn it_is_cut_between_characters_and_says_so() {
        assert_eq!(visible_within("abcdef", 6), "abcdef");
        assert_eq!(visible_within("abcdefg", 6), "abcde…");
        assert_eq!(visible_within("训练训练", 3), "训练…");
        assert_eq!(visible_within("abc\u{202e}d", 6), "abc…");
        assert_eq!(visible_within("\n", 2), "\\n");
        assert_eq!(visible_within("\n", 1), "…");
        assert_eq!(visible_within("abc", 0), "");
        assert_eq!(visible_within("", 0), "");
    }

    #[test]
    fn whatever_comes_is_bounded_and_has_nothing_hidden_in_it() {
        for case in 0..20_000u64 {
            let mut rng = seed::stream(case, "visible", &[]);
            let ranges = [0x20, 0x100, 0x3000, 0x11_0000];
            let text: String = (0..seed::below(&mut rng, 40))
                .filter_map(|_| char::from_u32(rng.next_u32() % ranges[rng.next_u32() as usize % ranges.len()]))
                .collect();
            let most = seed::below(&mut rng, 60) as usize;
            let shown = visible_within(&text, most);
            assert!(shown.chars().count() <= most, "{text:?} in {most}: {shown:?}");
            assert!(!shown.chars().any(is_hidden), "{text:?}: {shown:?}");
            let whole = visible_within(&text, usize::MAX);
            assert_eq!(whole.chars().count() <= most, whole == shown, "{text:?} in {most}: {shown:?}");
        }
    }
}
