//! The libraries of functions, one module for each: rows of the table and the code behind them.

pub(crate) mod amounts;
pub(crate) mod convert;
pub(crate) mod format;
pub(crate) mod lists;
pub(crate) mod net;
pub(crate) mod optional;
pub(crate) mod patch;
pub(crate) mod pattern;
pub(crate) mod semver;
pub(crate) mod standard;
pub(crate) mod strings;
pub(crate) mod time;
pub(crate) mod url;

use crate::value::EvalError;

/// Longest text that a function may build, in bytes: what an object can hold several times over.
const MAX_TEXT: u128 = 16 << 20;

/// Refuses to build what is too large, before it is built.
pub(crate) fn bounded(bytes: u128) -> Result<(), EvalError> {
    if bytes > MAX_TEXT {
        return Err(EvalError::other(format!("a text of {bytes} bytes exceeds the limit of {MAX_TEXT}")));
    }
    Ok(())
}
