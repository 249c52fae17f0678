//! The connection against a scripted peer.

use super::*;
use tokio::io::{AsyncBufReadExt, BufReader, DuplexStream, duplex};

fn pair() -> (Qmp, mpsc::Receiver<Happening>, DuplexStream) {
    let (ours, theirs) = duplex(1 << 20);
    let (reader, writer) = tokio::io::split(ours);
    let (qmp, events) = Qmp::over(reader, writer, Decoder::default());
    (qmp, events, theirs)
}

#[tokio::test]
async fn answers_find_their_commands_in_any_order() {
    let (qmp, _events, peer) = pair();
    let (read, mut write) = tokio::io::split(peer);
    let serve = async move {
        let mut lines = BufReader::new(read).lines();
        let mut seen = Vec::new();
        for _ in 0..2 {
            let line = lines.next_line().await.expect("read").expect("line");
            seen.push(serde_json::from_str::<Value>(&line).expect("json"));
        }
        for command in seen.iter().rev() {
            let answer = json!({"return": command["execute"], "id": command["id"]});
            write.write_all(format!("{answer}\n").as_bytes()).await.expect("write");
        }
        (lines, write)
    };
    let second = Duration::from_secs(1);
    let (a, b, _peer) = tokio::join!(qmp.execute("a", None, second), qmp.execute("b", None, second), serve);
    assert_eq!((a.expect("a"), b.expect("b")), (json!("a"), json!("b")));
}

#[tokio::test]
async fn a_silent_peer_costs_the_deadline_and_no_more() {
    let (qmp, _events, _peer) = pair();
    let err = qmp.execute("stop", None, Duration::from_millis(30)).await.expect_err("no answer");
    assert_eq!(err.to_string(), "QEMU did not answer \"stop\" within 0.03 s");
}

#[tokio::test]
async fn the_end_is_told_to_everyone() {
    let (qmp, mut events, peer) = pair();
    let waiting = tokio::spawn({
        let qmp = qmp.clone();
        async move { qmp.cont().await }
    });
    drop(peer);
    assert!(matches!(waiting.await.expect("join"), Err(QmpError::Closed { .. })));
    assert_eq!(events.recv().await, Some(Happening::Closed));
    assert!(qmp.quit().await.is_ok(), "a QEMU that is gone has quit");
}

#[tokio::test]
async fn a_slow_receiver_hears_that_it_missed_something() {
    let (_qmp, mut events, mut peer) = pair();
    let flood = "{\"event\":\"RTC_CHANGE\"}\n".repeat(EVENTS_MAX + 50);
    peer.write_all(flood.as_bytes()).await.expect("write");
    let mut got = Vec::new();
    while got.last() != Some(&Happening::Lost) {
        got.push(events.recv().await.expect("open"));
    }
    assert!(got.len() >= EVENTS_MAX, "{}", got.len());
}
