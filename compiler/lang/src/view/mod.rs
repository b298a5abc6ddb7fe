//! Stages for people and programs: drawings, tables, JSON.

mod json;

pub use self::json::json;
