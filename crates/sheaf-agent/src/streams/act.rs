//! What is asked of a guest or a machine and answered at once: freeze, unfreeze, reset; and USB devices that viewers pass in.

use std::time::Duration;

use http::StatusCode;
use http_body_util::{BodyExt, Limited};
use serde_json::Value;
use sheaf_api::rules::duration;
use sheaf_runtime::ObjectKey;

use super::relay::{Far, relay};
use super::session::Kind;
use super::{Answer, Params, Request, Streams, answer, dial, fail, ws};
use crate::machines::freeze::{self, FreezeError};
use crate::machines::requests::Ask;

/// Options are short.
const BODY_MAX: usize = 64 << 10;

fn done() -> Answer {
    Ok(answer(StatusCode::OK, "text/plain", ""))
}

fn refused(error: &FreezeError) -> Answer {
    fail(500, "InternalError", format!("Internal error occurred: {error}"))
}

impl Streams {
    pub(super) async fn freeze(self, request: Request, params: &Params) -> Answer {
        let machine = self.running(params)?;
        let body = Limited::new(request.into_body(), BODY_MAX).collect().await;
        let bytes = body.map(|b| b.to_bytes()).unwrap_or_default();
        let options: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let asked = &options["unfreezeTimeout"];
        // A duration as text, or nanoseconds as older clients send them.
        let timeout = match asked {
            Value::String(text) => duration(text).map(Duration::from_secs_f64),
            Value::Number(n) => n.as_u64().map(Duration::from_nanos),
            _ => None,
        };
        let Some(timeout) = timeout else {
            return fail(
                500,
                "InternalError",
                "Internal error occurred: unfreezeTimeout is missing or no duration, as 5m; 0 is none",
            );
        };
        let timeout = (!timeout.is_zero()).then_some(timeout);
        let key = key(params);
        match freeze::freeze(&self.machines, &machine, &key, timeout, &self.group).await {
            Ok(()) => done(),
            Err(error) => refused(&error),
        }
    }

    pub(super) async fn unfreeze(self, params: &Params) -> Answer {
        let machine = self.running(params)?;
        match freeze::thaw(&self.machines, &machine, &key(params)).await {
            Ok(()) => done(),
            Err(error) => refused(&error),
        }
    }

    pub(super) async fn reset(self, params: &Params) -> Answer {
        let machine = self.running(params)?;
        match machine.ask(Ask::Reset).await {
            Ok(()) => done(),
            Err(denied) => fail(500, "InternalError", format!("Internal error occurred: {denied}")),
        }
    }

    /// A connection to a port of the guest, by vsock. TLS, if the client wants it, is between it and the guest.
    pub(super) async fn vsock(self, request: Request, params: &Params) -> Answer {
        let machine = self.running(params)?;
        let port = super::query(&request).get("port").and_then(|p| p.parse::<u32>().ok());
        let Some(port) = port else {
            return fail(400, "BadRequest", "the parameter port is missing, or no number");
        };
        let Some(cid) = machine.spec().rare.vsock_cid else {
            return fail(400, "BadRequest", "the machine has no vsock (autoattachVSOCK: true gives it one)");
        };
        let connected = tokio::task::spawn_blocking(move || sheaf_qemu::vsock::connect(cid, port)).await;
        let socket = connected.map_err(std::io::Error::other).and_then(|s| s).and_then(|fd| {
            let socket = std::os::unix::net::UnixStream::from(fd);
            socket.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(socket)
        });
        let socket = match socket {
            Ok(socket) => socket,
            Err(error) => {
                let why = format!("the guest does not answer at port {port} of vsock: {error}");
                return fail(500, "InternalError", why);
            }
        };
        let (response, upgrade) = ws::accept(request)?;
        self.group.spawn(async move {
            let Some(client) = upgrade.finish().await else { return };
            relay(client, Far::stream(socket), Vec::new(), std::future::pending(), None).await;
        });
        Ok(response)
    }

    pub(super) async fn usb(self, request: Request, params: &Params) -> Answer {
        let machine = self.running(params)?;
        let slots = machine.spec().rare.usb_redirections;
        let free = (0..slots).find_map(|n| Some((n, self.sessions.if_free(Kind::Usb(n), params)?)));
        let Some((number, session)) = free else {
            return fail(503, "ServiceUnavailable", "There are no USB slots available.");
        };
        let socket = dial(&machine.files().usb_redirection(number)).await?;
        let (response, upgrade) = ws::accept(request)?;
        self.group.spawn(async move {
            let Some(client) = upgrade.finish().await else { return };
            relay(client, Far::stream(socket), Vec::new(), session.ended(), None).await;
        });
        Ok(response)
    }
}

fn key(params: &Params) -> ObjectKey {
    ObjectKey::new(params.get("namespace"), params.get("name"))
}
