//! Chat templates in the normal form of `mipo.jinja`, rendered on all threads. Knows Python's methods of text and what
//! a message is; knows nothing of how the normal form was made, of tokens, and no Python objects.
//!
//! The normal form leaves to minijinja what it and Jinja2 agree on. Everything else is a filter here that does what
//! Python does, and fails, rather than guess, on a value that it does not know.

use std::sync::Arc;

use minijinja::value::{Object, Value};
use minijinja::{Environment, Error as Raised, ErrorKind, functions};
use rayon::prelude::*;

use crate::error::Error;
use crate::pytext;

/// Conversations that a thread renders in one go.
const CHUNK: usize = 64;
/// Fields of a message that the normal form reads, those that every message has first.
const FIELDS: [&str; 6] = ["role", "content", "reasoning_content", "thinking", "reasoning", "name"];
/// Where an older name of `reasoning_content` is one, in the order in which transformers asks for them.
const REASONING: std::ops::Range<usize> = 2..5;
const NAME: &str = "chat";
/// What the message of an error begins with that is none of the template's own.
const LEFT: &str = "left to transformers: ";

/// Conversation c holds messages `offsets[c]..offsets[c + 1]`; `fields[f].1[m]` is field f of message m, None where null.
#[derive(Debug, Clone, Default)]
pub struct Conversations<'a> {
    /// `[conversations + 1]`.
    pub offsets: Vec<usize>,
    /// Name and texts `[messages]` of each field.
    pub fields: Vec<(String, Vec<Option<&'a str>>)>,
}

impl Conversations<'_> {
    /// Conversations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Texts in Arrow's layout, and the rows that have none: their text is empty, and why.
#[derive(Debug, Clone, Default)]
pub struct Rendered {
    /// `[rows + 1]`: text i is `bytes[offsets[i]..offsets[i + 1]]`.
    pub offsets: Vec<i64>,
    /// UTF-8 of all texts, one after another.
    pub bytes: Vec<u8>,
    /// Row and message of each conversation that the template refused, or that is not Rust's to render.
    pub failed: Vec<(usize, String)>,
}

/// A chat template.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    absent: Vec<String>,
}

impl Template {
    /// The template of a source in the normal form; `variables` are texts with the names that it uses for them.
    ///
    /// # Errors
    /// A source that cannot be parsed.
    pub fn new(source: &str, variables: &[(String, String)]) -> Result<Self, Error> {
        let refuse = |reason: Raised| Error::Template {
            reason: reason.to_string(),
        };
        let mut environment = environment();
        for (name, value) in variables {
            environment.add_global(name.clone(), Value::from(value.as_str()));
        }
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(refuse)?;
        Ok(Self {
            environment,
            absent: Vec::new(),
        })
    }

    /// The same, which refuses messages with one of these fields: the normal form was made as if nobody had them.
    #[must_use]
    pub fn without(self, absent: Vec<String>) -> Self {
        Self { absent, ..self }
    }

    /// Messages of all parts, one after another (prompt, then response), as one chat.
    ///
    /// # Errors
    /// The template's own message where it raises; else what is wrong.
    pub fn render(&self, parts: &[(&Conversations, usize)], add_generation_prompt: bool) -> Result<String, String> {
        let mut messages = Vec::with_capacity(4);
        for &(conversations, row) in parts {
            let columns = self.columns(conversations);
            for message in conversations.offsets[row]..conversations.offsets[row + 1] {
                messages.push(columns.message(message)?);
            }
        }
        self.render_messages(messages, add_generation_prompt)
    }

    /// Every conversation, in order, on all threads.
    #[must_use]
    pub fn render_all(&self, conversations: &Conversations, add_generation_prompt: bool) -> Rendered {
        let columns = self.columns(conversations);
        let render = |row: usize| {
            let (start, end) = (conversations.offsets[row], conversations.offsets[row + 1]);
            let messages = (start..end).map(|message| columns.message(message));
            self.render_messages(messages.collect::<Result<_, _>>()?, add_generation_prompt)
        };
        let rows: Vec<usize> = (0..conversations.len()).collect();
        let chunks: Vec<Rendered> = rows.par_chunks(CHUNK).map(|rows| Rendered::of(rows, render)).collect();
        Rendered::joined(chunks)
    }

    fn render_messages(&self, messages: Vec<Value>, add_generation_prompt: bool) -> Result<String, String> {
        if messages.is_empty() {
            return Err(format!("{LEFT}a conversation without messages"));
        }
        let root = Root {
            messages: Value::from(messages),
            add_generation_prompt,
        };
        let template = self.environment.get_template(NAME).map_err(|error| error.to_string())?;
        let rendered = template.render(Value::from_object(root));
        rendered.map_err(|error| error.detail().map_or_else(|| error.to_string(), str::to_owned))
    }

    fn columns<'c>(&'c self, conversations: &'c Conversations<'c>) -> Columns<'c> {
        let find = |name: &str| conversations.fields.iter().find(|(field, _)| field == name);
        Columns {
            read: FIELDS.map(|name| find(name).map(|(_, texts)| texts.as_slice())),
            absent: self.absent.iter().filter_map(|name| find(name)).collect(),
        }
    }
}

impl Rendered {
    fn of(rows: &[usize], render: impl Fn(usize) -> Result<String, String>) -> Self {
        let mut made = Self {
            offsets: vec![0],
            ..Self::default()
        };
        for (place, &row) in rows.iter().enumerate() {
            match render(row) {
                Ok(text) => made.bytes.extend_from_slice(text.as_bytes()),
                Err(message) => made.failed.push((place, message)),
            }
            made.offsets.push(made.bytes.len() as i64);
        }
        made
    }

    /// All texts, one table after another.
    #[must_use]
    pub fn joined(parts: Vec<Self>) -> Self {
        if parts.len() == 1 {
            return parts.into_iter().next().unwrap_or_default();
        }
        let mut whole = Self {
            offsets: Vec::with_capacity(1 + parts.iter().map(|part| part.offsets.len()).sum::<usize>()),
            bytes: Vec::with_capacity(parts.iter().map(|part| part.bytes.len()).sum()),
            failed: Vec::new(),
        };
        whole.offsets.push(0);
        for part in parts {
            let (row, start) = (whole.offsets.len() - 1, whole.bytes.len() as i64);
            whole.offsets.extend(part.offsets.iter().skip(1).map(|end| start + end));
            whole.bytes.extend_from_slice(&part.bytes);
            let failed = part.failed.into_iter();
            whole
                .failed
                .extend(failed.map(|(place, message)| (row + place, message)));
        }
        whole
    }
}

/// The columns of a table of messages that a template reads, and those that it must not meet.
struct Columns<'c> {
    read: [Option<&'c [Option<&'c str>]>; 6],
    absent: Vec<&'c (String, Vec<Option<&'c str>>)>,
}

impl Columns<'_> {
    /// Message m as transformers hands it to a template: without nulls, with its reasoning under each of its names.
    fn message(&self, m: usize) -> Result<Value, String> {
        if let Some((name, _)) = self.absent.iter().find(|(_, texts)| texts[m].is_some()) {
            return Err(format!("{LEFT}a message with the field {name:?}"));
        }
        let text = |field: usize| self.read[field].and_then(|texts| texts[m]);
        let (Some(role), Some(content)) = (text(0), text(1)) else {
            return Err(format!("{LEFT}a message without role or content"));
        };
        let mut others = [None; 4];
        for (place, field) in (REASONING.start..FIELDS.len()).enumerate() {
            others[place] = text(field);
        }
        if let Some(reasoning) = REASONING.filter_map(text).next() {
            others[0] = Some(reasoning);
            others[1] = others[1].or(Some(reasoning));
        }
        let some = others.iter().any(Option::is_some);
        Ok(Value::from_object(Message {
            role: Value::from(role),
            content: Value::from(content),
            others: some.then(|| Box::new(others.map(|text| text.map(Value::from)))),
        }))
    }
}

/// One message.
#[derive(Debug)]
struct Message {
    role: Value,
    content: Value,
    others: Option<Box<[Option<Value>; 4]>>,
}

impl Object for Message {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        match key {
            "role" => Some(self.role.clone()),
            "content" => Some(self.content.clone()),
            _ => {
                let place = FIELDS[REASONING.start..].iter().position(|&field| field == key)?;
                self.others.as_ref()?[place].clone()
            }
        }
    }

    /// A message is never an empty dictionary.
    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

/// The variables of one rendering.
#[derive(Debug)]
struct Root {
    messages: Value,
    add_generation_prompt: bool,
}

impl Object for Root {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        match key {
            "messages" => Some(self.messages.clone()),
            "add_generation_prompt" => Some(self.add_generation_prompt.into()),
            _ => None,
        }
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::empty();
    // Only text is put out: whatever else arrives here would have raised in Python, or was not foreseen.
    environment.set_formatter(|out, _, value| match value.as_str() {
        Some(text) => out.write_str(text).map_err(Raised::from),
        None => Err(failure(format!("expected text to put out, got {}", value.kind()))),
    });
    environment.add_function("namespace", functions::namespace);
    environment.add_function("raise_exception", |message: &str| -> Result<Value, Raised> {
        Err(failure(message.to_owned()))
    });
    environment.add_function("py_range", |start: i64, stop: i64, step: Option<i64>| -> Vec<i64> {
        match step {
            Some(-1) => (stop.saturating_add(1)..=start).rev().collect(),
            _ => (start..stop).collect(),
        }
    });
    environment.add_test("of", |value: &Value, kinds: &str| {
        kinds.split(' ').any(|kind| kind == kind_of(value))
    });
    add_filters(&mut environment);
    environment
}

fn failure(message: String) -> Raised {
    Raised::new(ErrorKind::InvalidOperation, message)
}

/// What `mipo.kinds` calls a value's kind; of lists, the one that stands for all.
fn kind_of(value: &Value) -> &'static str {
    use minijinja::value::ValueKind;
    match value.kind() {
        ValueKind::Undefined => "undefined",
        ValueKind::None => "none",
        ValueKind::Bool => "boolean",
        ValueKind::Number => "integer",
        ValueKind::String => "string",
        ValueKind::Map => "message",
        _ => "messages",
    }
}

fn text(value: &Value) -> Result<&str, Raised> {
    value
        .as_str()
        .ok_or_else(|| failure(format!("expected text, got {}", value.kind())))
}

/// The part of a text as a value, without a copy where it is the whole.
fn part(whole: &Value, part: &str) -> Value {
    match whole.as_str() {
        Some(text) if text.len() == part.len() => whole.clone(),
        _ => Value::from(part),
    }
}

/// A method from text to text that is only known for ASCII: Unicode's tables are of different years elsewhere.
fn cased(value: &Value, make: impl Fn(&str) -> String) -> Result<String, Raised> {
    let text = text(value)?;
    if text.is_ascii() {
        Ok(make(text))
    } else {
        Err(failure(format!(
            "{LEFT}upper or lower case of other letters than ASCII's"
        )))
    }
}

type Made = Result<Value, Raised>;

fn strip(value: &Value, chars: Option<&str>, start: bool, end: bool) -> Made {
    Ok(part(value, pytext::strip(text(value)?, chars, start, end)))
}

fn add_filters(environment: &mut Environment) {
    environment.add_filter("soft", |value: &Value| -> Made {
        match kind_of(value) {
            "undefined" => Ok(Value::from("")),
            "none" => Ok(Value::from("None")),
            "boolean" => Ok(Value::from(if value.is_true() { "True" } else { "False" })),
            "string" => Ok(value.clone()),
            "integer" => Ok(Value::from(value.to_string())),
            kind => Err(failure(format!("expected text, got {kind}"))),
        }
    });
    environment.add_filter("py_strip", |v: &Value, chars: Option<&str>| strip(v, chars, true, true));
    environment.add_filter("py_lstrip", |v: &Value, chars: Option<&str>| {
        strip(v, chars, true, false)
    });
    environment.add_filter("py_rstrip", |v: &Value, chars: Option<&str>| {
        strip(v, chars, false, true)
    });
    environment.add_filter("py_replace", |v: &Value, old: &str, new: &str| -> Made {
        Ok(Value::from(text(v)?.replace(old, new)))
    });
    environment.add_filter("py_upper", |v: &Value| cased(v, str::to_ascii_uppercase));
    environment.add_filter("py_lower", |v: &Value| cased(v, str::to_ascii_lowercase));
    environment.add_filter("py_capitalize", |v: &Value| cased(v, pytext::capitalize));
    environment.add_filter("py_title", |v: &Value| cased(v, pytext::title));
    environment.add_filter("py_removeprefix", |v: &Value, start: &str| -> Made {
        let whole = text(v)?;
        Ok(part(v, whole.strip_prefix(start).unwrap_or(whole)))
    });
    environment.add_filter("py_removesuffix", |v: &Value, end: &str| -> Made {
        let whole = text(v)?;
        Ok(part(v, whole.strip_suffix(end).unwrap_or(whole)))
    });
    environment.add_filter("py_startswith", |v: &Value, start: &str| -> Made {
        Ok(text(v)?.starts_with(start).into())
    });
    environment.add_filter("py_endswith", |v: &Value, end: &str| -> Made {
        Ok(text(v)?.ends_with(end).into())
    });
    environment.add_filter("py_contains", |v: &Value, part: &str| -> Made {
        Ok(text(v)?.contains(part).into())
    });
    environment.add_filter("py_find", |v: &Value, part: &str| -> Made {
        Ok(pytext::find(text(v)?, part).into())
    });
    environment.add_filter("py_count", |v: &Value, part: &str| -> Made {
        Ok(pytext::count(text(v)?, part).into())
    });
    environment.add_filter("py_times", |v: &Value, times: i64| -> Made {
        Ok(Value::from(text(v)?.repeat(times.max(0) as usize)))
    });
    environment.add_filter("py_json", |v: &Value| -> Made {
        match kind_of(v) {
            "string" => Ok(Value::from(pytext::json(text(v)?))),
            "boolean" | "integer" => Ok(Value::from(v.to_string())),
            "none" => Ok(Value::from("null")),
            kind => Err(failure(format!("expected text for tojson, got {kind}"))),
        }
    });
    environment.add_filter("py_split", |v: &Value, by: Option<&str>| -> Made {
        let text = text(v)?;
        Ok(match by {
            Some(by) => text.split(by).map(Value::from).collect(),
            None => text
                .split(pytext::is_space)
                .filter(|part| !part.is_empty())
                .map(Value::from)
                .collect(),
        })
    });
    environment.add_filter("py_first", |v: &Value, by: &str| -> Made {
        let whole = text(v)?;
        Ok(part(v, whole.split_once(by).map_or(whole, |(first, _)| first)))
    });
    // From the left, as Python splits: of overlapping separators the first one counts.
    environment.add_filter("py_last", |v: &Value, by: &str| -> Made {
        let whole = text(v)?;
        Ok(part(v, whole.split(by).last().unwrap_or(whole)))
    });
    environment.add_filter("py_default", |v: &Value, other: &Value, falsy: bool| -> Value {
        if v.is_undefined() || (falsy && !v.is_true()) {
            other.clone()
        } else {
            v.clone()
        }
    });
    add_filters_of_lists(environment);
}

fn add_filters_of_lists(environment: &mut Environment) {
    environment.add_filter("py_length", |v: &Value| -> Result<i64, Raised> {
        match v.as_str() {
            Some(text) => Ok(text.chars().count() as i64),
            None if v.is_undefined() => Ok(0),
            None => Ok(items(v)?.len() as i64),
        }
    });
    environment.add_filter("at", |v: &Value, place: i64| -> Made {
        let length = || Ok::<_, Raised>(items(v)?.len() as i64);
        let place = if place < 0 { place + length()? } else { place };
        nth(v, place)
    });
    environment.add_filter("nth", nth);
    environment.add_filter("py_slice", slice);
    environment.add_filter("py_join", |v: &Value, by: &str| -> Made {
        let items = items(v)?;
        let texts = items.iter().map(text).collect::<Result<Vec<_>, _>>()?;
        Ok(Value::from(texts.join(by)))
    });
    environment.add_filter("py_map", |v: &Value, field: &str| -> Made {
        items(v)?
            .iter()
            .map(|item| item.get_attr(field))
            .collect::<Result<Vec<_>, _>>()
            .map(Value::from)
    });
    environment.add_filter(
        "py_select",
        |v: &Value, field: &str, value: &Value, keep: bool| -> Made {
            let mut kept = items(v)?;
            kept.retain(|item| (item.get_attr(field).ok().as_ref() == Some(value)) == keep);
            Ok(Value::from(kept))
        },
    );
}

/// The items of a list; of a text, its characters.
fn items(value: &Value) -> Result<Vec<Value>, Raised> {
    match value.as_str() {
        Some(text) => Ok(text.chars().map(Value::from).collect()),
        None => Ok(value.try_iter()?.collect()),
    }
}

/// The item at a place counted from 0, undefined outside.
fn nth(value: &Value, place: i64) -> Made {
    let Ok(place) = usize::try_from(place) else {
        return Ok(Value::UNDEFINED);
    };
    match value.as_str() {
        Some(text) => Ok(text.chars().nth(place).map_or(Value::UNDEFINED, Value::from)),
        None => value.get_item_by_index(place),
    }
}

/// Python's `value[start:stop:step]` for steps of 1 and -1.
fn slice(value: &Value, start: Option<i64>, stop: Option<i64>, step: Option<i64>) -> Made {
    let back = step == Some(-1);
    let mut items = items(value)?;
    let length = items.len() as i64;
    let (least, most) = if back { (-1, length - 1) } else { (0, length) };
    let bound = |place: i64| (if place < 0 { place + length } else { place }).clamp(least, most);
    let start = start.map_or(if back { most } else { least }, bound);
    let stop = stop.map_or(if back { least } else { most }, bound);
    let (from, to) = if back { (stop + 1, start + 1) } else { (start, stop) };
    let mut items: Vec<Value> = items.drain(from as usize..to.max(from) as usize).collect();
    if back {
        items.reverse();
    }
    if value.as_str().is_some() {
        return Ok(Value::from(items.iter().filter_map(Value::as_str).collect::<String>()));
    }
    Ok(Value::from(items))
}
