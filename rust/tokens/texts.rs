//! The texts of preference groups: prompts alone, and prompts with a response. Knows texts and chat templates, no ids but
//! those that end a turn, and no Python.

use std::borrow::Cow;

use crate::tokenizer::template::{Conversations, Template};

/// A response of a group.
#[derive(Debug, Clone, Copy)]
pub enum Said {
    /// The chosen one.
    Chosen,
    /// One of the rejected ones, by its place among those of all groups.
    Rejected(usize),
}

/// The texts of preference groups, made when they are asked for.
pub trait Texts: Sync {
    /// How many prompts, chosen responses and rejected responses there are.
    fn sizes(&self) -> [usize; 3];

    /// The prompt alone, with all that stands before an answer.
    ///
    /// # Errors
    /// What a template says of a prompt that it refuses.
    fn prompt(&self, group: usize) -> Result<Cow<'_, str>, String>;

    /// The prompt and a response to it as one text.
    ///
    /// # Errors
    /// As `prompt`.
    fn joint(&self, group: usize, said: Said) -> Result<Cow<'_, str>, String>;
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
    pub unfinished: Unfinished<'a>,
}

impl Texts for Plain<'_> {
    fn sizes(&self) -> [usize; 3] {
        [self.prompts.len(), self.chosen.len(), self.rejected.len()]
    }

    fn prompt(&self, group: usize) -> Result<Cow<'_, str>, String> {
        Ok(Cow::Borrowed(self.prompts[group]))
    }

    fn joint(&self, group: usize, said: Said) -> Result<Cow<'_, str>, String> {
        let response = match said {
            Said::Chosen => self.chosen[group],
            Said::Rejected(place) => self.rejected[place],
        };
        let closed = self.unfinished.is(group, said) || response.ends_with(self.end);
        let end = if closed { "" } else { self.end };
        Ok(Cow::Owned([self.prompts[group], response, end].concat()))
    }
}

/// Chats, rendered when they are asked for.
#[derive(Debug)]
pub struct Chats<'a> {
    /// What renders them.
    pub template: &'a Template,
    /// `[groups]`: the messages of the prompts.
    pub prompts: Conversations<'a>,
    /// `[groups]`: the messages that follow.
    pub chosen: Conversations<'a>,
    /// One for each rejected response.
    pub rejected: Conversations<'a>,
}

impl Texts for Chats<'_> {
    fn sizes(&self) -> [usize; 3] {
        [self.prompts.len(), self.chosen.len(), self.rejected.len()]
    }

    fn prompt(&self, group: usize) -> Result<Cow<'_, str>, String> {
        self.template.render(&[(&self.prompts, group)], true).map(Cow::Owned)
    }

    fn joint(&self, group: usize, said: Said) -> Result<Cow<'_, str>, String> {
        let response = match said {
            Said::Chosen => (&self.chosen, group),
            Said::Rejected(place) => (&self.rejected, place),
        };
        let chat = [(&self.prompts, group), response];
        self.template.render(&chat, false).map(Cow::Owned)
    }
}

/// Texts that a template made elsewhere: responses are whole texts, prompt included.
#[derive(Debug)]
pub struct Rendered<'a> {
    /// `[groups]`.
    pub prompts: Vec<&'a str>,
    /// `[groups]`.
    pub chosen: Vec<&'a str>,
    /// One for each rejected response.
    pub rejected: Vec<&'a str>,
}

impl Texts for Rendered<'_> {
    fn sizes(&self) -> [usize; 3] {
        [self.prompts.len(), self.chosen.len(), self.rejected.len()]
    }

    fn prompt(&self, group: usize) -> Result<Cow<'_, str>, String> {
        Ok(Cow::Borrowed(self.prompts[group]))
    }

    fn joint(&self, group: usize, said: Said) -> Result<Cow<'_, str>, String> {
        Ok(Cow::Borrowed(match said {
            Said::Chosen => self.chosen[group],
            Said::Rejected(place) => self.rejected[place],
        }))
    }
}

/// Responses that the token limit cut off, so that they never ended by themselves.
#[derive(Debug, Clone, Copy)]
pub struct Unfinished<'a> {
    /// `[groups]`.
    pub chosen: &'a [bool],
    /// One for each rejected response.
    pub rejected: &'a [bool],
    /// Ids that end a turn, where a template writes one after every response.
    pub end_ids: &'a [u32],
}

impl Unfinished<'_> {
    pub(crate) fn is(&self, group: usize, said: Said) -> bool {
        match said {
            Said::Chosen => self.chosen.get(group),
            Said::Rejected(place) => self.rejected.get(place),
        }
        .is_some_and(|&unfinished| unfinished)
    }

    /// A response without the end of its turn, if it never came to it. What follows the end (a line break in many
    /// templates) goes as well.
    pub(crate) fn cut<'a>(&self, group: usize, said: Said, response: &'a [u32]) -> &'a [u32] {
        let end = || response.iter().rposition(|id| self.end_ids.contains(id));
        if self.is(group, said) && !self.end_ids.is_empty() {
            &response[..end().unwrap_or(response.len())]
        } else {
            response
        }
    }
}
