mod encoder;
mod engine;
mod pytext;
pub(crate) mod seams;
mod template;
