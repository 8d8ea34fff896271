//! Words in lines of a screen's width.

use unicode_width::UnicodeWidthStr;

/// What the second and further lines of a sentence begin with.
const INDENT: &str = "  ";

/// The sentence in lines of at most this width, as far in as it begins; a word that is longer stands alone.
pub fn wrap(sentence: &str, width: usize) -> Vec<String> {
    let words = sentence.trim_start();
    let (leading, _) = sentence.split_at(sentence.len() - words.len());
    let mut lines = Vec::new();
    let mut line = leading.to_owned();
    let mut is_begun = false;
    for word in words.split(' ') {
        if is_begun && line.width() + 1 + word.width() > width {
            lines.push(std::mem::replace(&mut line, format!("{leading}{INDENT}{word}")));
        } else {
            line += if is_begun { " " } else { "" };
            line += word;
        }
        is_begun = true;
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_break_between_words() {
        assert_eq!(wrap("one two three", 80), ["one two three"]);
        assert_eq!(wrap("one two three four", 9), ["one two", "  three", "  four"]);
        assert_eq!(wrap("a unbreakable b", 5), ["a", "  unbreakable", "  b"]);
        assert_eq!(wrap("    one two", 8), ["    one", "      two"]);
    }
}
