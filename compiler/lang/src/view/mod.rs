//! Stages for people and programs: drawings, tables, JSON.

mod dot;
mod json;

pub use self::dot::dot;
pub use self::json::json;
