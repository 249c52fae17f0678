//! Random bytes for names and UIDs. Every write takes some, and each time the system is asked is a system call: a
//! thread asks for many at once. Each byte is given out once. Not for keys and tokens.
//!
//! Owns what its thread has in stock.

use std::cell::RefCell;

use ring::rand::{SecureRandom, SystemRandom};
use sheaf_meta::status::Status;

/// What a thread asks for at once.
const STOCK: usize = 1024;

thread_local! {
    /// The bytes, and how many of them have been given out.
    static BYTES: RefCell<([u8; STOCK], usize)> = const { RefCell::new(([0; STOCK], STOCK)) };
}

/// Bytes that nobody can foresee.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], Status> {
    const { assert!(N <= STOCK) };
    BYTES.with_borrow_mut(|(stock, used)| {
        if *used + N > STOCK {
            // Nothing of it is given out if this fails half way.
            *used = STOCK;
            SystemRandom::new()
                .fill(stock)
                .map_err(|_| Status::internal("the system gives no random bytes"))?;
            *used = 0;
        }
        let mut out = [0; N];
        let given = &mut stock[*used..*used + N];
        out.copy_from_slice(given);
        given.fill(0);
        *used += N;
        Ok(out)
    })
}

/// A random UUID (version 4).
pub(crate) fn uuid() -> Result<String, Status> {
    Ok(uuid::Builder::from_random_bytes(bytes()?).into_uuid().to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn nothing_comes_twice() {
        // Several stocks of one thread, and two threads.
        let many = || (0..500).map(|_| bytes::<16>().unwrap()).collect::<Vec<_>>();
        let other = std::thread::spawn(many).join().unwrap();
        let all: HashSet<[u8; 16]> = many().into_iter().chain(other).collect();
        assert_eq!(all.len(), 1000);
        let id = uuid::Uuid::parse_str(&uuid().unwrap()).unwrap();
        assert_eq!(id.get_version_num(), 4);
    }
}
