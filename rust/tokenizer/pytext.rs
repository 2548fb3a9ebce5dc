//! Python's methods of `str`, as CPython has them. Knows text alone.

/// `str.isspace` of one character, which knows more than Unicode's White_Space: the separators 1C to 1F as well.
#[must_use]
pub fn is_space(char: char) -> bool {
    matches!(char,
        '\t'..='\r' | '\x1c'..=' ' | '\u{85}' | '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}'
        | '\u{2028}' | '\u{2029}' | '\u{202f}' | '\u{205f}' | '\u{3000}')
}

/// `str.strip`, or `lstrip` or `rstrip` where only `start` or `end` is set.
#[must_use]
pub fn strip<'a>(text: &'a str, chars: Option<&str>, start: bool, end: bool) -> &'a str {
    let cut = |char: char| chars.map_or_else(|| is_space(char), |chars| chars.contains(char));
    let text = if start { text.trim_start_matches(cut) } else { text };
    if end { text.trim_end_matches(cut) } else { text }
}

/// `str.find`: characters before the first occurrence, -1 where there is none.
#[must_use]
pub fn find(text: &str, part: &str) -> i64 {
    text.find(part).map_or(-1, |place| text[..place].chars().count() as i64)
}

/// `str.count`: occurrences that do not overlap; an empty part occurs between all characters.
#[must_use]
pub fn count(text: &str, part: &str) -> i64 {
    text.matches(part).count() as i64
}

/// `str.capitalize` of ASCII.
#[must_use]
pub fn capitalize(text: &str) -> String {
    let mut capitalized = text.to_ascii_lowercase();
    if let Some(first) = capitalized.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    capitalized
}

/// `str.title` of ASCII: a letter is upper case where none stands before it.
#[must_use]
pub fn title(text: &str) -> String {
    let mut before = false;
    let turn = |char: char| {
        let cased = if before {
            char.to_ascii_lowercase()
        } else {
            char.to_ascii_uppercase()
        };
        before = char.is_ascii_alphabetic();
        cased
    };
    text.chars().map(turn).collect()
}

/// `json.dumps(text, ensure_ascii=False)`.
#[must_use]
pub fn json(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for char in text.chars() {
        match char {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\x08' => quoted.push_str("\\b"),
            '\x0c' => quoted.push_str("\\f"),
            '\0'..='\x1f' => quoted.push_str(&format!("\\u{:04x}", char as u32)),
            _ => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}
