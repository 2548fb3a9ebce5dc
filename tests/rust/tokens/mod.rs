mod groups;
mod seams;
