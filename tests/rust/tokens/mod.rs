mod data;
mod groups;
mod refusals;
mod seams;
