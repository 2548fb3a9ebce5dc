//! Laws of templates. That texts are those of transformers is tested in Python.

use mipo::tokenizer::{Conversations, Rendering, Template};

const SOURCE: &str = "{% for m in v_messages %}<{{ m.role }}>{{ m.content|str_strip }}{% endfor %}\
                      {% if v_add_generation_prompt %}<assistant>{% endif %}";

fn template(source: &str) -> Template {
    let constants = [("bos_token", Some("<s>")), ("tools", None)];
    let constants = constants.map(|(name, text)| (name.to_owned(), text.map(str::to_owned)));
    Template::new(source, constants.into()).unwrap()
}

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
    let template = template(SOURCE);
    for prompt in [false, true] {
        let all = template.render_all(&chats, prompt).unwrap();
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
    let template = template(SOURCE);
    let whole = template.render(&[(&chats, 0), (&chats, 1)], false).unwrap();
    assert_eq!(whole, "<user>ask<user>answer<assistant>answer");
    let alone = template.render(&[(&chats, 0)], true).unwrap();
    assert_eq!(alone, "<user>ask<assistant>");
}

#[test]
fn a_failed_row_has_no_text_and_a_reason() {
    let texts: Vec<String> = (0..300)
        .map(|c| if c == 200 { "no".into() } else { c.to_string() })
        .collect();
    let chats = conversations(&texts);
    let source = "{% if (v_messages|item(0)).content == 'no' %}{{ raise_exception('never') }}{% endif %}x";
    let all = template(source).render_all(&chats, false).unwrap();
    assert_eq!(all.failed, [(200, "the error never".to_owned())]);
    assert!((0..300).all(|c| row(&all, c) == if c == 200 { "" } else { "x" }));
}

#[test]
fn what_rust_does_not_render_has_a_reason() {
    let template = template("{{ (v_messages|item(0)).content|upper }}{{ (v_messages|item(0)).extra|default('-') }}");
    let chat = |content, extra| Conversations {
        offsets: vec![0, 1],
        fields: vec![
            ("role".into(), vec![Some("user")]),
            ("content".into(), vec![content]),
            ("extra".into(), vec![extra]),
        ],
    };
    let render = |content, extra| template.render(&[(&chat(content, extra), 0)], false);
    assert_eq!(render(Some("a"), Some("x")), Ok("Ax".to_owned()));
    assert_eq!(render(Some("a"), None), Ok("A-".to_owned()));
    assert_eq!(render(None, None), Err("a message without role or content".to_owned()));
    let letters = "upper or lower case of other letters than ASCII's";
    assert_eq!(render(Some("ß"), None), Err(letters.to_owned()));
    let nothing = template.render(&[], false);
    assert_eq!(nothing, Err("a conversation without messages".to_owned()));
}

#[test]
fn what_comes_out_is_text_as_python_prints_it() {
    let texts = vec!["x".to_owned()];
    let chats = conversations(&texts);
    let render = |source| template(source).render(&[(&chats, 0)], false);
    let constants = "{{ none }}{{ true }}{{ undef }}{{ 7 }}{{ v_bos_token }}{{ v_tools }}";
    assert_eq!(render(constants), Ok("NoneTrue7<s>None".to_owned()));
    assert_eq!(
        render("{{ undef == none }}{{ undef == undef }}{{ true == 1 }}"),
        Ok("FalseTrueTrue".to_owned())
    );
    for source in [
        "{{ v_messages }}",
        "{{ 1.5 }}",
        "{{ 'a' + true }}",
        "{{ 'a' + undef }}",
        "{{ 'a' + 1 }}",
        "{{ 'a'|lt(1) }}",
        "{{ none|le(none) }}",
        "{{ 1|isin('1') }}",
        "{{ none|items }}",
        "{{ undef|item(0) }}",
        "{{ 'a'|str_strip(undef) }}",
        "{{ left('why') }}",
    ] {
        assert!(render(source).is_err(), "{source}");
    }
    assert!(Template::new("{% if %}", vec![]).is_err());
}

#[test]
fn what_would_take_all_memory_or_time_ends() {
    let texts = vec!["x".to_owned()];
    let chats = conversations(&texts);
    let render = |source| template(source).render(&[(&chats, 0)], false);
    assert_eq!(render("{{ range(100000)|length }}"), Ok("100000".to_owned()));
    for source in [
        "{{ range(1000000000)|length }}",
        "{{ 'x' * 1000000000000 }}",
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for a in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for a in range(99) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
        "{{ (['x'] * 90000000)|join }}",
        "{% set ns = namespace(l=['x']) %}{% for a in range(60) %}{% set ns.l = ns.l|plus(ns.l) %}{% endfor %}",
        "{{ 1|isin((['x'] * 90000000) * 9) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ] {
        assert!(render(source).is_err(), "{source}");
    }
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
    let template =
        template("{% set m = v_messages|item(0) %}{{ m.reasoning_content }},{{ m.thinking }},{{ m.reasoning }}");
    let render = |field| template.render(&[(&chat(field, "r"), 0)], false).unwrap();
    assert_eq!(render("reasoning_content"), "r,r,");
    assert_eq!(render("thinking"), "r,r,");
    assert_eq!(render("reasoning"), "r,r,r");
    assert_eq!(render("name"), ",,");
}
