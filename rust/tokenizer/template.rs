//! Chat templates as `mipo.tokenizer.jinja` writes them for minijinja, rendered on all threads. Knows what a message is;
//! knows nothing of Jinja2's syntax, of tokens or of Python.
//!
//! Where minijinja and Jinja2 differ, a template names an operation of rust/tokenizer/filters.rs.

use std::sync::Arc;

use minijinja::value::{Enumerator, Object, Value};
use minijinja::{Environment, Error as Raised};
use rayon::prelude::*;

use crate::error::Error;
use crate::interrupt;
use crate::memory;
use crate::tokenizer::filters::environment;

/// Conversations that a thread renders in one go.
const CHUNK: usize = 64;
/// What a template writes around the texts of a conversation, as a guess: a system message, roles and marks.
const CONVERSATION_BYTES: usize = 512;
/// The names of a message's reasoning, in the order in which transformers asks for them. It has the first two together.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
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

    /// The bytes of all texts.
    fn bytes(&self) -> usize {
        let texts = self.fields.iter().flat_map(|(_, texts)| texts);
        texts.map(|text| text.map_or(0, str::len)).sum()
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
    /// Row and reason of each conversation that the template refused, or that is not Rust's to render. Which of the two
    /// it is, transformers says.
    pub failed: Vec<(usize, String)>,
}

/// A chat template.
///
/// # Examples
/// ```
/// use mipo::tokenizer::{Conversations, Template};
///
/// let template = Template::new("{% for v_m in v_messages %}<{{ v_m.role }}>{{ v_m.content }}{% endfor %}", vec![])?;
/// let conversations = Conversations {
///     offsets: vec![0, 1, 3],
///     fields: vec![
///         ("role".into(), vec![Some("user"), Some("user"), Some("assistant")]),
///         ("content".into(), vec![Some("Hi!"), Some("2 + 3?"), Some("5")]),
///     ],
/// };
/// let rendering = template.render_all(&conversations, false)?;
/// assert_eq!(rendering.offsets, [0, 9, 33]);
/// assert_eq!(rendering.bytes, b"<user>Hi!<user>2 + 3?<assistant>5");
/// assert!(rendering.failed.is_empty());
/// # Ok::<(), mipo::error::Error>(())
/// ```
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    constants: Arc<[(String, Value)]>,
}

impl Template {
    /// The template of a source, and constants: variables by name, that are a text or none.
    ///
    /// # Errors
    /// A source that cannot be parsed.
    pub fn new(source: &str, constants: Vec<(String, Option<String>)>) -> Result<Self, Error> {
        let refuse = |reason: Raised| Error::Template {
            reason: reason.to_string(),
        };
        let mut environment = environment();
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(refuse)?;
        let constants = constants.into_iter().map(|(name, text)| (name, Value::from(text)));
        Ok(Self {
            environment,
            constants: constants.collect(),
        })
    }

    /// Messages of all parts, one after another (prompt, then response), as one chat.
    ///
    /// # Errors
    /// What raised, or is not Rust's to render.
    pub fn render(&self, parts: &[(&Conversations, usize)], add_generation_prompt: bool) -> Result<String, String> {
        let mut messages = Vec::with_capacity(4);
        for &(conversations, row) in parts {
            let columns = Columns::of(conversations);
            for message in conversations.offsets[row]..conversations.offsets[row + 1] {
                messages.push(columns.message(message)?);
            }
        }
        self.render_messages(&self.compiled()?, messages, add_generation_prompt)
    }

    /// Every conversation, in order, on all threads.
    ///
    /// # Errors
    /// Too little memory.
    pub fn render_all(&self, conversations: &Conversations, add_generation_prompt: bool) -> Result<Rendering, Error> {
        memory::expect(conversations.bytes() + conversations.len() * CONVERSATION_BYTES, 2)?;
        let columns = Columns::of(conversations);
        let compiled = self.compiled();
        let render = |row: usize| {
            interrupt::check();
            let (start, end) = (conversations.offsets[row], conversations.offsets[row + 1]);
            let messages = (start..end).map(|message| columns.message(message));
            let messages = messages.collect::<Result<_, _>>()?;
            self.render_messages(
                compiled.as_ref().map_err(String::clone)?,
                messages,
                add_generation_prompt,
            )
        };
        let rows: Vec<usize> = (0..conversations.len()).collect();
        let chunks: Vec<Rendering> = rows.par_chunks(CHUNK).map(|rows| Rendering::of(rows, render)).collect();
        Ok(Rendering::joined(chunks))
    }

    fn compiled(&self) -> Result<minijinja::Template<'_, '_>, String> {
        self.environment.get_template(NAME).map_err(|error| error.to_string())
    }

    fn render_messages(
        &self,
        compiled: &minijinja::Template<'_, '_>,
        messages: Vec<Value>,
        add_generation_prompt: bool,
    ) -> Result<String, String> {
        if messages.is_empty() {
            return Err("a conversation without messages".to_owned());
        }
        let root = Root {
            messages: Value::from(messages),
            add_generation_prompt,
            constants: self.constants.clone(),
        };
        let rendered = compiled.render(Value::from_object(root));
        rendered.map_err(|error| error.detail().map_or_else(|| error.to_string(), str::to_owned))
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

/// The columns of a table of messages.
struct Columns<'c> {
    role: Option<&'c [Option<&'c str>]>,
    content: Option<&'c [Option<&'c str>]>,
    others: Vec<(Arc<str>, &'c [Option<&'c str>])>,
}

impl<'c> Columns<'c> {
    fn of(conversations: &'c Conversations<'c>) -> Self {
        let mut columns = Self {
            role: None,
            content: None,
            others: Vec::new(),
        };
        for (name, texts) in &conversations.fields {
            match name.as_str() {
                "role" => columns.role = Some(texts),
                "content" => columns.content = Some(texts),
                other => columns.others.push((other.into(), texts)),
            }
        }
        columns
    }

    /// Message m as transformers hands it to a template: without nulls, with its reasoning under each of its names.
    fn message(&self, m: usize) -> Result<Value, String> {
        let text = |column: Option<&'c [Option<&'c str>]>| column?[m];
        let (Some(role), Some(content)) = (text(self.role), text(self.content)) else {
            return Err("a message without role or content".to_owned());
        };
        let there = |(name, texts): &(Arc<str>, &[Option<&str>])| Some((name.clone(), Value::from(texts[m]?)));
        let mut message = Message {
            role: Value::from(role),
            content: Value::from(content),
            others: self.others.iter().filter_map(there).collect(),
        };
        message.name_reasoning();
        Ok(Value::from_object(message))
    }
}

/// One message; `others` are the fields that few have.
#[derive(Debug)]
struct Message {
    role: Value,
    content: Value,
    others: Vec<(Arc<str>, Value)>,
}

impl Message {
    fn other(&self, name: &str) -> Option<&Value> {
        Some(&self.others.iter().find(|(field, _)| **field == *name)?.1)
    }

    fn name_reasoning(&mut self) {
        let Some(reasoning) = REASONING.iter().find_map(|name| self.other(name)).cloned() else {
            return;
        };
        for name in &REASONING[..2] {
            if self.other(name).is_none() {
                self.others.push(((*name).into(), reasoning.clone()));
            }
        }
    }
}

impl Object for Message {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        match key {
            "role" => Some(self.role.clone()),
            "content" => Some(self.content.clone()),
            _ => self.other(key).cloned(),
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let others = self.others.iter().map(|(name, _)| Value::from(name.clone()));
        Enumerator::Values(
            [Value::from("role"), Value::from("content")]
                .into_iter()
                .chain(others)
                .collect(),
        )
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
    constants: Arc<[(String, Value)]>,
}

impl Object for Root {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        match key.strip_prefix("v_")? {
            "messages" => Some(self.messages.clone()),
            "add_generation_prompt" => Some(self.add_generation_prompt.into()),
            name => Some(self.constants.iter().find(|(constant, _)| constant == name)?.1.clone()),
        }
    }
}
