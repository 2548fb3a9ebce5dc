//! Chat templates in the normal form of `mipo.jinja`, rendered on all threads. Knows what a message is; knows nothing of
//! how the normal form was made, of tokens or of Python.
//!
//! The normal form leaves to minijinja what it and Jinja2 agree on; the rest is in rust/tokenizer/filters.rs.

use std::sync::Arc;

use minijinja::value::{Object, Value};
use minijinja::{Environment, Error as Raised};
use rayon::prelude::*;

use crate::error::Error;
use crate::tokenizer::filters::{LEFT, environment};

/// Conversations that a thread renders in one go.
const CHUNK: usize = 64;
/// Fields of a message that the normal form reads, those that every message has first.
const FIELDS: [&str; 6] = ["role", "content", "reasoning_content", "thinking", "reasoning", "name"];
/// Where an older name of `reasoning_content` is one, in the order in which transformers asks for them.
const REASONING: std::ops::Range<usize> = 2..5;
const NAME: &str = "chat";

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

/// Rendered texts in Arrow's layout, and why some rows have none: their text is empty.
#[derive(Debug, Clone, Default)]
pub struct Rendering {
    /// `[rows + 1]`: text i is `bytes[offsets[i]..offsets[i + 1]]`.
    pub offsets: Vec<i64>,
    /// UTF-8 of all texts, one after another.
    pub bytes: Vec<u8>,
    /// Row and message of each conversation that the template refused, or that is not Rust's to render.
    pub failed: Vec<(usize, String)>,
}

/// A chat template.
///
/// # Examples
/// ```
/// use mipo::tokenizer::{Conversations, Template};
///
/// let template = Template::new("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")?;
/// let conversations = Conversations {
///     offsets: vec![0, 1, 3],
///     fields: vec![
///         ("role".into(), vec![Some("user"), Some("user"), Some("assistant")]),
///         ("content".into(), vec![Some("Hi!"), Some("2 + 3?"), Some("5")]),
///     ],
/// };
/// let rendering = template.render_all(&conversations, false);
/// assert_eq!(rendering.offsets, [0, 9, 33]);
/// assert_eq!(rendering.bytes, b"<user>Hi!<user>2 + 3?<assistant>5");
/// assert!(rendering.failed.is_empty());
/// # Ok::<(), mipo::error::Error>(())
/// ```
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    absent: Vec<String>,
}

impl Template {
    /// The template of a source in the normal form.
    ///
    /// # Errors
    /// A source that cannot be parsed.
    pub fn new(source: &str) -> Result<Self, Error> {
        let refuse = |reason: Raised| Error::Template {
            reason: reason.to_string(),
        };
        let mut environment = environment();
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
    pub fn render_all(&self, conversations: &Conversations, add_generation_prompt: bool) -> Rendering {
        let columns = self.columns(conversations);
        let render = |row: usize| {
            let (start, end) = (conversations.offsets[row], conversations.offsets[row + 1]);
            let messages = (start..end).map(|message| columns.message(message));
            self.render_messages(messages.collect::<Result<_, _>>()?, add_generation_prompt)
        };
        let rows: Vec<usize> = (0..conversations.len()).collect();
        let chunks: Vec<Rendering> = rows.par_chunks(CHUNK).map(|rows| Rendering::of(rows, render)).collect();
        Rendering::joined(chunks)
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

impl Rendering {
    fn of(rows: &[usize], render: impl Fn(usize) -> Result<String, String>) -> Self {
        let mut rendering = Self {
            offsets: vec![0],
            ..Self::default()
        };
        for (place, &row) in rows.iter().enumerate() {
            match render(row) {
                Ok(text) => rendering.bytes.extend_from_slice(text.as_bytes()),
                Err(message) => rendering.failed.push((place, message)),
            }
            rendering.offsets.push(rendering.bytes.len() as i64);
        }
        rendering
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
