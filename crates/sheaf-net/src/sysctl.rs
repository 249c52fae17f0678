//! Kernel settings under `/proc/sys/net`, of the network namespace that the calling thread is in. No state.

use std::io;
use std::path::Path;

/// Why a setting could not be made.
#[derive(Debug, thiserror::Error)]
#[error("setting {name} to {value} failed")]
pub struct SysctlError {
    name: &'static str,
    value: &'static str,
    #[source]
    source: io::Error,
}

/// Lets the node route between the guests' subnet and the outside (`net.ipv4.ip_forward`). Writes only if it must, as
/// every write resets other settings of all interfaces to those of a router. Returns whether it wrote.
pub fn ensure_ip_forward() -> Result<bool, SysctlError> {
    ensure("net.ipv4.ip_forward", Path::new("/proc/sys/net/ipv4/ip_forward"), "1")
}

fn ensure(name: &'static str, path: &Path, value: &'static str) -> Result<bool, SysctlError> {
    let error = |source| SysctlError { name, value, source };
    if std::fs::read_to_string(path).map_err(error)?.trim() == value {
        return Ok(false);
    }
    std::fs::write(path, value).map_err(error)?;
    Ok(true)
}
