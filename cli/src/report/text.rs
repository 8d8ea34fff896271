//! Words in lines of a screen's width.

use unicode_width::UnicodeWidthStr;

/// What the second and further lines of a sentence begin with.
const INDENT: &str = "  ";

/// The sentence in lines of at most this width; a word that is longer stands alone.
pub fn wrap(sentence: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in sentence.split(' ') {
        if !line.trim_start().is_empty() && line.width() + 1 + word.width() > width {
            lines.push(std::mem::replace(&mut line, INDENT.into()));
            line += word;
        } else {
            line += if line.is_empty() || line == INDENT { "" } else { " " };
            line += word;
        }
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
    }
}
