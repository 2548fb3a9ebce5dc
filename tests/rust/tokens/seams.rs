//! Groups whose texts are cut at seams have the ids of groups left whole.

use mipo::tokenizer::{Encoder, EngineChoice, Table};
use mipo::tokens::{GroupRows, Groups, Interner, Plain, Truncated};
use serde_json::Value;

use crate::tokenizer::seams::{around, changed, encoder};

/// Prompts, chosen and rejected responses of many groups, whose borders lie in, on and far from a seam.
fn texts() -> [Vec<String>; 3] {
    let heads = [
        "the other",
        "a  the",
        "the\n\nother the",
        "",
        "日本 the 日本",
        "<s>the er<e> the",
    ];
    let tails = [
        "",
        " ",
        " t",
        " the",
        "\u{301}",
        "er",
        "h e",
        "\u{301} the",
        "<e>",
        " <",
        "1 2",
        "\n",
    ];
    let mut texts = [Vec::new(), Vec::new(), Vec::new()];
    for head in heads {
        for border in tails {
            for tail in tails {
                texts[0].push(format!("{head}{border}"));
                texts[1].push(format!("{tail}the"));
                texts[2].push(tail.to_owned());
            }
        }
    }
    texts
}

fn push(encoder: &Encoder) -> (GroupRows, Table, Table) {
    let texts = texts();
    let borrowed = texts
        .each_ref()
        .map(|side| side.iter().map(String::as_str).collect::<Vec<_>>());
    let count = borrowed[0].len();
    let (flags, offsets, rows): (_, Vec<i64>, Vec<u64>) = (
        vec![false; count],
        (0..=count as i64).collect(),
        (0..count as u64).collect(),
    );
    let truncated = Truncated {
        chosen: &flags,
        rejected: &flags,
        end_ids: &[],
    };
    let [prompts, chosen, rejected] = borrowed;
    let texts = Plain {
        prompts,
        chosen,
        rejected,
        end: "<e>",
        truncated,
    };
    let groups = Groups {
        offsets: &offsets,
        rows: &rows,
        truncated,
        add_special_tokens: true,
    };
    let mut interner = Interner::default();
    let rows = interner.push(encoder, &texts, groups, Some(14)).unwrap();
    (rows, interner.take_prompts(), interner.take_responses())
}

#[test]
fn groups_that_are_cut_have_the_ids_of_groups_left_whole() {
    for post_processor in [Value::Null, around(false), around(true)] {
        let json = changed("/post_processor", post_processor);
        let (cut, whole) = (
            push(&encoder(&json, EngineChoice::Fastokens)),
            push(&encoder(&json, EngineChoice::Tokenizers)),
        );
        assert_eq!(cut, whole);
        assert!(
            cut.0.merged > 0 && cut.0.verdicts.contains(&3),
            "every branch was taken"
        );
    }
}
