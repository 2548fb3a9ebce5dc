mod draw;
mod fairness;
mod within;

pub(crate) use draw::sizes;
