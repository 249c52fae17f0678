//! How a command fails: its exit code, and an error of the API in words for people. Pure.

use std::error::Error as StdError;
use std::fmt;

use kube::core::Status;

use super::Session;

/// The command ends here, with this code and these words.
#[derive(Debug)]
pub(crate) struct Exit {
    /// What the process ends with.
    pub(crate) code: u8,
    text: String,
}

/// Something went wrong.
pub(crate) const FAILED: u8 = 1;
/// The command line is not in order.
pub(crate) const USAGE: u8 = 2;
/// The object that was named does not exist.
pub(crate) const NOT_FOUND: u8 = 3;
/// It took longer than was allowed.
pub(crate) const TIMED_OUT: u8 = 4;

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Exit {}

impl Exit {
    /// Ends with a code and a text, which may be empty.
    pub(crate) fn error(code: u8, text: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Self { code, text: text.into() })
    }

    /// The command line asks for something that makes no sense.
    pub(crate) fn usage(text: impl Into<String>) -> anyhow::Error {
        Self::error(USAGE, text)
    }
}

/// The exit code of an error.
pub(crate) fn code(error: &anyhow::Error) -> u8 {
    if let Some(exit) = error.downcast_ref::<Exit>() {
        return exit.code;
    }
    match status(error) {
        Some(status) if status.code == 404 => NOT_FOUND,
        _ => FAILED,
    }
}

/// The API's refusal in an error, if it is one.
pub(crate) fn status(error: &anyhow::Error) -> Option<&Status> {
    match error.chain().find_map(|cause| cause.downcast_ref::<kube::Error>())? {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

/// Puts an error of the API client into words: what the server answered, or why there was no answer.
pub(crate) fn explain(error: anyhow::Error, session: Option<&Session>) -> anyhow::Error {
    let Some(at) = error.chain().position(|cause| cause.is::<kube::Error>()) else { return error };
    let code = code(&error);
    let mut text: String = error.chain().take(at).map(|cause| format!("{cause}: ")).collect();
    let cause = error.chain().nth(at).and_then(|cause| cause.downcast_ref::<kube::Error>());
    let (url, origin) = session.map_or(("", ""), |s| (s.url.as_str(), s.origin.as_str()));
    text += &match cause {
        Some(kube::Error::Api(status)) => refusal(status, url, origin),
        Some(other) => no_answer(other, url, origin),
        None => String::new(),
    };
    Exit::error(code, text)
}

/// The words of a Status, its causes one per line.
fn refusal(status: &Status, url: &str, origin: &str) -> String {
    if status.code == 401 {
        return format!(
            "the server {url} does not accept the credentials of {origin}: they belong to another cluster or have expired"
        );
    }
    let causes = status.details.as_ref().map_or(&[][..], |details| &details.causes);
    if causes.len() < 2 {
        return match status.message.as_str() {
            "" => format!("the server {url} answered {} {}", status.code, status.reason),
            text => text.to_owned(),
        };
    }
    let head = status.message.split_once(" is invalid").map_or(status.message.as_str(), |(head, _)| head);
    let mut text = format!("{head} is invalid:");
    for cause in causes {
        let field = if cause.field.is_empty() { String::new() } else { format!("{}: ", cause.field) };
        text += &format!("\n  {field}{}", cause.message);
    }
    text
}

/// Why there was no answer.
fn no_answer(error: &kube::Error, url: &str, origin: &str) -> String {
    let first: &(dyn StdError + 'static) = match error {
        kube::Error::Service(source) => source.as_ref(),
        kube::Error::HyperError(source) => source,
        other => other,
    };
    let chain = chain(first);
    let chain = chain.strip_prefix("client error (Connect): ").unwrap_or(&chain);
    let hint = if chain.contains("certificate") {
        "\nThe server is not the one that this kubeconfig was made for, or its data directory was made anew."
    } else if chain.contains("refused") || chain.contains("timed out") || chain.contains("unreachable") {
        "\nIs `sheaf server` running there? --kubeconfig or --data-dir name another cluster."
    } else {
        ""
    };
    format!("cannot reach the server {url} (from {origin}): {chain}{hint}")
}

/// An error with its causes. Many layers repeat the text of the one below; each is told once.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use kube::core::response::{StatusCause, StatusDetails};

    fn cause(field: &str, message: &str) -> StatusCause {
        StatusCause { reason: "FieldValueInvalid".into(), message: message.into(), field: field.into() }
    }

    #[test]
    fn causes_are_told_one_per_line() {
        let mut status = Status::failure("VirtualMachine \"a\" is invalid: [x, y]", "Invalid").with_code(422);
        status.details = Some(StatusDetails {
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: vec![cause("spec.a", "Required value"), cause("", "too big")],
            retry_after_seconds: 0,
        });
        let error = anyhow::Error::new(kube::Error::Api(status.boxed())).context("creating VM a");
        let error = explain(error, None);
        assert_eq!(
            error.to_string(),
            "creating VM a: VirtualMachine \"a\" is invalid:\n  spec.a: Required value\n  too big"
        );
        assert_eq!(code(&error), FAILED);
    }

    #[test]
    fn layers_that_repeat_are_told_once() {
        let error = anyhow::anyhow!("no key").context("TLS: no key").context("reading a");
        assert_eq!(chain(error.as_ref()), "reading a: TLS: no key");
    }

    #[test]
    fn each_failure_has_its_code() {
        let api = |code: u16| {
            let status = Status::failure("virtualmachines \"a\" not found", "x").with_code(code);
            anyhow::Error::new(kube::Error::Api(status.boxed()))
        };
        let table = [
            (api(404), NOT_FOUND),
            (explain(api(404), None), NOT_FOUND),
            (api(409), FAILED),
            (Exit::usage("x"), USAGE),
            (Exit::error(TIMED_OUT, "x"), TIMED_OUT),
            (anyhow::anyhow!("x"), FAILED),
        ];
        for (error, expected) in table {
            assert_eq!(code(&error), expected, "{error:#}");
        }
        let wrapped: anyhow::Error = Err::<(), _>(Exit::error(NOT_FOUND, "y")).context("z").unwrap_err();
        assert_eq!(code(&wrapped), NOT_FOUND);
    }
}
