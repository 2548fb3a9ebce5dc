//! Laws of templates. That texts are those of transformers is tested in Python.

use mipo::tokenizer::{Conversations, Rendering, Template};

const SOURCE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content|py_strip }}{% endfor %}\
                      {% if add_generation_prompt %}<assistant>{% endif %}";

/// Conversation c has c % 3 + 1 messages with the text `c`.
fn conversations(texts: &[String]) -> Conversations<'_> {
    let mut chats = Conversations {
        offsets: vec![0],
        ..Conversations::default()
    };
    let (mut roles, mut contents) = (Vec::new(), Vec::new());
    for (c, text) in texts.iter().enumerate() {
        for m in 0..=c % 3 {
            roles.push(Some(if m % 2 == 0 { "user" } else { "assistant" }));
            contents.push(Some(text.as_str()));
        }
        chats.offsets.push(roles.len());
    }
    chats.fields = vec![("role".into(), roles), ("content".into(), contents)];
    chats
}

fn row(rendering: &Rendering, row: usize) -> &str {
    let (start, end) = (rendering.offsets[row] as usize, rendering.offsets[row + 1] as usize);
    std::str::from_utf8(&rendering.bytes[start..end]).unwrap()
}

#[test]
fn all_at_once_is_one_by_one() {
    let texts: Vec<String> = (0..1_000).map(|c| format!(" \u{1f}{c} é\n")).collect();
    let chats = conversations(&texts);
    let template = Template::new(SOURCE).unwrap();
    for prompt in [false, true] {
        let all = template.render_all(&chats, prompt);
        assert_eq!(all.offsets.len(), texts.len() + 1);
        assert!(all.failed.is_empty());
        for c in 0..texts.len() {
            assert_eq!(row(&all, c), template.render(&[(&chats, c)], prompt).unwrap());
        }
    }
}

#[test]
fn parts_are_one_chat() {
    let texts: Vec<String> = ["ask", "answer"].map(str::to_owned).into();
    let chats = conversations(&texts);
    let template = Template::new(SOURCE).unwrap();
    let whole = template.render(&[(&chats, 0), (&chats, 1)], false).unwrap();
    assert_eq!(whole, "<user>ask<user>answer<assistant>answer");
    let alone = template.render(&[(&chats, 0)], true).unwrap();
    assert_eq!(alone, "<user>ask<assistant>");
}

#[test]
fn a_failed_row_has_no_text_and_the_message_of_the_template() {
    let texts: Vec<String> = (0..300)
        .map(|c| if c == 200 { "no".into() } else { c.to_string() })
        .collect();
    let chats = conversations(&texts);
    let source = "{% if (messages|at(0)).content == 'no' %}{{ raise_exception('never') }}{% endif %}x";
    let all = Template::new(source).unwrap().render_all(&chats, false);
    assert_eq!(all.failed, [(200, "never".to_owned())]);
    assert!((0..300).all(|c| row(&all, c) == if c == 200 { "" } else { "x" }));
}

#[test]
fn what_rust_does_not_render_is_left_to_transformers() {
    let template = || Template::new("{{ (messages|at(0)).content|py_upper }}").unwrap();
    let chat = |content, extra| Conversations {
        offsets: vec![0, 1],
        fields: vec![
            ("role".into(), vec![Some("user")]),
            ("content".into(), vec![content]),
            ("tool_calls".into(), vec![extra]),
        ],
    };
    let left = |result: Result<String, String>| result.unwrap_err().starts_with("left to transformers: ");
    assert_eq!(
        template().render(&[(&chat(Some("a"), Some("x")), 0)], false).unwrap(),
        "A"
    );
    assert!(left(template().render(&[(&chat(None, None), 0)], false)));
    assert!(left(template().render(&[(&chat(Some("ß"), None), 0)], false)));
    assert!(left(template().render(&[], false)));
    let without = template().without(vec!["tool_calls".into()]);
    assert!(left(without.render(&[(&chat(Some("a"), Some("x")), 0)], false)));
    assert_eq!(without.render(&[(&chat(Some("a"), None), 0)], false).unwrap(), "A");
}

#[test]
fn only_text_comes_out() {
    let texts = vec!["x".to_owned()];
    let chats = conversations(&texts);
    let render = |source| Template::new(source).unwrap().render(&[(&chats, 0)], false);
    assert_eq!(
        render("{{ none|soft }}{{ true|soft }}{{ undef|soft }}{{ 7|soft }}"),
        Ok("NoneTrue7".to_owned())
    );
    assert_eq!(render("{{ undef == none }}|{{ undef == undef }}").ok(), None);
    assert_eq!(
        render("{{ (undef == none)|soft }}{{ (undef == undef)|soft }}"),
        Ok("FalseTrue".to_owned())
    );
    for source in [
        "{{ undef }}",
        "{{ none }}",
        "{{ messages }}",
        "{{ 'a' + true }}",
        "{{ 'a' + undef }}",
        "{{ 'a' + 1 }}",
    ] {
        assert!(render(source).is_err(), "{source}");
    }
    assert!(Template::new("{% if %}").is_err());
}

#[test]
fn reasoning_has_all_its_names() {
    let chat = |field: &str, text| Conversations {
        offsets: vec![0, 1],
        fields: vec![
            ("role".into(), vec![Some("assistant")]),
            ("content".into(), vec![Some("")]),
            (field.into(), vec![Some(text)]),
        ],
    };
    let source =
        "{% set m = messages|at(0) %}{{ m.reasoning_content|soft }},{{ m.thinking|soft }},{{ m.reasoning|soft }}";
    let template = Template::new(source).unwrap();
    let render = |field| template.render(&[(&chat(field, "r"), 0)], false).unwrap();
    assert_eq!(render("reasoning_content"), "r,r,");
    assert_eq!(render("thinking"), "r,r,");
    assert_eq!(render("reasoning"), "r,r,r");
    assert_eq!(render("name"), ",,");
}
