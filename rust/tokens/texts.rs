//! The texts of preference groups: prompts alone, and prompts with a response. Knows texts and chat templates, and no
//! ids but those that end a turn.

use std::borrow::Cow;

use crate::tokenizer::{Conversations, Template};

/// A response of a group.
#[derive(Debug, Clone, Copy)]
pub enum Response {
    /// The chosen one.
    Chosen,
    /// One of the rejected ones, by its place among those of all groups.
    Rejected(usize),
}

/// The texts of preference groups, rendered on request.
pub trait Texts: Sync {
    /// How many prompts, chosen responses and rejected responses there are.
    fn sizes(&self) -> [usize; 3];

    /// The prompt alone, with all that stands before an answer.
    ///
    /// # Errors
    /// The template's message about a prompt that it refuses.
    fn prompt(&self, group: usize) -> Result<Cow<'_, str>, String>;

    /// The prompt and a response to it as one text.
    ///
    /// # Errors
    /// As `prompt`.
    fn joint(&self, group: usize, response: Response) -> Result<Cow<'_, str>, String>;
}

/// Texts without a template: a joint text is prompt, response and `end`, where the response has none yet.
#[derive(Debug)]
pub struct Plain<'a> {
    /// `[groups]`.
    pub prompts: Vec<&'a str>,
    /// `[groups]`.
    pub chosen: Vec<&'a str>,
    /// The rejected responses of all groups, one after another.
    pub rejected: Vec<&'a str>,
    /// The end of text; responses that were cut off get none.
    pub end: &'a str,
    /// Which responses were cut off.
    pub truncated: Truncated<'a>,
}

impl Texts for Plain<'_> {
    fn sizes(&self) -> [usize; 3] {
        [self.prompts.len(), self.chosen.len(), self.rejected.len()]
    }

    fn prompt(&self, group: usize) -> Result<Cow<'_, str>, String> {
        Ok(Cow::Borrowed(self.prompts[group]))
    }

    fn joint(&self, group: usize, response: Response) -> Result<Cow<'_, str>, String> {
        let text = match response {
            Response::Chosen => self.chosen[group],
            Response::Rejected(place) => self.rejected[place],
        };
        let closed = self.truncated.contains(group, response) || text.ends_with(self.end);
        let end = if closed { "" } else { self.end };
        Ok(Cow::Owned([self.prompts[group], text, end].concat()))
    }
}

/// Chats, rendered one by one.
#[derive(Debug)]
pub struct Chats<'a> {
    /// Renders the messages.
    pub template: &'a Template,
    /// `[groups]`: the messages of the prompts.
    pub prompts: Conversations<'a>,
    /// `[groups]`: the messages of the chosen responses, which follow.
    pub chosen: Conversations<'a>,
    /// The rejected responses of all groups, one after another.
    pub rejected: Conversations<'a>,
}

impl Texts for Chats<'_> {
    fn sizes(&self) -> [usize; 3] {
        [self.prompts.len(), self.chosen.len(), self.rejected.len()]
    }

    fn prompt(&self, group: usize) -> Result<Cow<'_, str>, String> {
        self.template.render(&[(&self.prompts, group)], true).map(Cow::Owned)
    }

    fn joint(&self, group: usize, response: Response) -> Result<Cow<'_, str>, String> {
        let answer = match response {
            Response::Chosen => (&self.chosen, group),
            Response::Rejected(place) => (&self.rejected, place),
        };
        let chat = [(&self.prompts, group), answer];
        self.template.render(&chat, false).map(Cow::Owned)
    }
}

/// Chats that were rendered elsewhere.
#[derive(Debug)]
pub struct Rendered<'a> {
    /// `[groups]`.
    pub prompts: Vec<&'a str>,
    /// `[groups]`: prompt and chosen response as one text.
    pub chosen: Vec<&'a str>,
    /// The same for each rejected response, of all groups one after another.
    pub rejected: Vec<&'a str>,
}

impl Texts for Rendered<'_> {
    fn sizes(&self) -> [usize; 3] {
        [self.prompts.len(), self.chosen.len(), self.rejected.len()]
    }

    fn prompt(&self, group: usize) -> Result<Cow<'_, str>, String> {
        Ok(Cow::Borrowed(self.prompts[group]))
    }

    fn joint(&self, group: usize, response: Response) -> Result<Cow<'_, str>, String> {
        Ok(Cow::Borrowed(match response {
            Response::Chosen => self.chosen[group],
            Response::Rejected(place) => self.rejected[place],
        }))
    }
}

/// Responses that the token limit cut off, so that they have no end.
#[derive(Debug, Clone, Copy)]
pub struct Truncated<'a> {
    /// `[groups]`: whether the chosen response was cut off.
    pub chosen: &'a [bool],
    /// The same for each rejected response.
    pub rejected: &'a [bool],
    /// Ids that end a turn, where a template writes one after every response.
    pub end_ids: &'a [u32],
}

impl Truncated<'_> {
    fn contains(&self, group: usize, response: Response) -> bool {
        match response {
            Response::Chosen => self.chosen.get(group),
            Response::Rejected(place) => self.rejected.get(place),
        }
        .is_some_and(|&truncated| truncated)
    }

    /// The ids of a response, without the end of a turn that it never reached and what follows that end (a line break
    /// in many templates).
    pub(crate) fn cut<'a>(&self, group: usize, response: Response, ids: &'a [u32]) -> &'a [u32] {
        let end = || ids.iter().rposition(|id| self.end_ids.contains(id));
        if self.contains(group, response) && !self.end_ids.is_empty() {
            &ids[..end().unwrap_or(ids.len())]
        } else {
            ids
        }
    }
}
