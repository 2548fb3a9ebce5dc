//! Python's methods of `str`.

use mipo::tokenizer::pytext;

#[test]
fn white_space_is_that_of_python() {
    // [c for c in map(chr, range(0x110000)) if c.isspace()] of CPython, as ranges.
    let spaces = [
        (0x9, 0xd),
        (0x1c, 0x20),
        (0x85, 0x85),
        (0xa0, 0xa0),
        (0x1680, 0x1680),
        (0x2000, 0x200a),
        (0x2028, 0x2029),
        (0x202f, 0x202f),
        (0x205f, 0x205f),
        (0x3000, 0x3000),
    ];
    for char in '\0'..=char::MAX {
        let expected = spaces
            .iter()
            .any(|&(first, last)| (first..=last).contains(&(char as u32)));
        assert_eq!(pytext::is_space(char), expected, "{char:?}");
    }
}

#[test]
fn methods_are_those_of_python() {
    assert_eq!(pytext::strip("xyaxy", Some("yx"), true, true), "a");
    assert_eq!(pytext::strip("xyaxy", Some("yx"), true, false), "axy");
    assert_eq!(pytext::strip("xyaxy", Some("yx"), false, true), "xya");
    assert_eq!(pytext::strip("\u{1c}\u{200b}", None, true, true), "\u{200b}");
    assert_eq!(
        (
            pytext::find("éab", "b"),
            pytext::find("éab", "c"),
            pytext::find("é", "")
        ),
        (2, -1, 0)
    );
    assert_eq!((pytext::count("aaa", "aa"), pytext::count("éa", "")), (1, 3));
    assert_eq!(
        (pytext::capitalize("aBC d"), pytext::capitalize("")),
        ("Abc d".into(), String::new())
    );
    assert_eq!(pytext::title("they're 3a-OK"), "They'Re 3A-Ok");
    assert_eq!(
        pytext::json("\"\\\n\r\t\u{8}\u{c}\u{1}\u{7f}é"),
        "\"\\\"\\\\\\n\\r\\t\\b\\f\\u0001\u{7f}é\""
    );
}
