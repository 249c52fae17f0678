//! Tables of [`super::plan_image`].

use super::*;
use sheaf_image::intake::Stored;
use sheaf_image::probe::Format;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000_000 + seconds).expect("a time")
}

fn image(source: &str, url: &str) -> VirtualMachineImage {
    let mut image = VirtualMachineImage::new("default", "debian");
    image.spec.source_type = source.to_owned();
    image.spec.url = url.to_owned();
    image
}

fn kept(url: &str) -> Kept {
    let stored = Stored {
        format: Format::Qcow2,
        len: 300,
        allocated: 4096,
        virtual_size: 2 << 30,
        sha512: "ab".to_owned(),
    };
    Kept { stored, url: url.to_owned() }
}

fn running(url: &str, received: u64) -> Transfer {
    let progress = Progress { connected: true, received, total: Some(100) };
    Transfer::Running { url: url.to_owned(), progress }
}

fn failed(url: &str) -> Transfer {
    Transfer::Failed {
        url: url.to_owned(),
        why: "cannot be fetched: HTTP 404 Not Found from http://a/".to_owned(),
    }
}

/// Plans, and lets the image have the status.
fn turn(image: &mut VirtualMachineImage, kept: Option<&Kept>, transfer: Option<&Transfer>, now: i64) -> Plan {
    let plan = plan_image(&Seen { image, kept, transfer, tried: None, now: at(now) });
    image.status = Some(plan.status.clone());
    plan
}

fn said(plan: &Plan, kind: &str) -> (String, String, String) {
    let found = condition(&plan.status, kind).cloned().unwrap_or_default();
    (found.status, found.reason, found.message)
}

fn word(plan: &Plan, kind: &str) -> String {
    said(plan, kind).0
}

#[test]
fn a_download_goes_its_way() {
    let mut image = image("download", "http://a/");
    let plan = turn(&mut image, None, None, 0);
    assert_eq!(plan.step, Step::Start { url: "http://a/".to_owned(), checksum: None });
    assert_eq!((plan.status.applied_url.as_str(), plan.status.progress), ("http://a/", Some(0)));
    assert_eq!(
        (word(&plan, INITIALIZED), word(&plan, IMPORTED)),
        ("Unknown".to_owned(), "Unknown".to_owned())
    );

    let plan = turn(&mut image, None, Some(&running("http://a/", 42)), 1);
    assert_eq!((plan.step.clone(), plan.status.progress), (Step::Nothing, Some(42)));
    assert_eq!(said(&plan, IMPORTED), ("Unknown".to_owned(), "Importing".to_owned(), String::new()));
    assert_eq!(word(&plan, INITIALIZED), "True");
    let plan = turn(&mut image, None, Some(&running("http://a/", 100)), 2);
    assert_eq!(plan.status.progress, Some(99), "100 only when it is complete");

    let plan = turn(&mut image, Some(&kept("http://a/")), None, 3);
    assert_eq!((plan.step.clone(), plan.again, plan.status.progress), (Step::Nothing, None, Some(100)));
    assert_eq!((plan.status.size, plan.status.virtual_size), (Some(300), Some(2 << 30)));
    assert_eq!((word(&plan, IMPORTED), word(&plan, RETRY_LIMIT)), ("True".to_owned(), "False".to_owned()));
    let again = turn(&mut image, Some(&kept("http://a/")), None, 99);
    assert_eq!(again.status, plan.status, "nothing moves while nothing happens");
}

#[test]
fn failures_are_told_counted_and_repeated() {
    let mut image = image("download", "http://a/");
    image.spec.retry = Some(1);
    turn(&mut image, None, None, 0);
    let plan = turn(&mut image, None, Some(&failed("http://a/")), 1);
    assert!(plan.told_failure);
    assert_eq!(plan.status.failed, Some(1));
    let message = "the image cannot be fetched: HTTP 404 Not Found from http://a/".to_owned();
    assert_eq!(said(&plan, IMPORTED), ("Unknown".to_owned(), "Failed".to_owned(), message.clone()));
    assert_eq!(
        said(&plan, RETRY_LIMIT),
        ("False".to_owned(), "Retrying".to_owned(), format!("failed due to error: {message}"))
    );

    let plan = turn(&mut image, None, None, 2);
    assert_eq!((plan.step, plan.again), (Step::Nothing, Some(Duration::from_secs(9))));
    let plan = turn(&mut image, None, None, 11);
    assert!(matches!(plan.step, Step::Start { .. }));
    assert_eq!(said(&plan, IMPORTED).2, message, "the reason stays to be read until bytes come");

    let plan = turn(&mut image, None, Some(&failed("http://a/")), 12);
    assert_eq!(plan.status.failed, Some(2));
    assert_eq!(word(&plan, RETRY_LIMIT), "True");
    assert!(said(&plan, RETRY_LIMIT).2.starts_with("retry attempted 1/1, failed due to error"));
    assert_eq!((word(&plan, INITIALIZED), word(&plan, IMPORTED)), ("False".to_owned(), "False".to_owned()));

    // Harvester stops here; we look now and then, so that it heals by itself.
    let plan = turn(&mut image, None, None, 13);
    assert_eq!((plan.step, plan.again), (Step::Nothing, Some(Duration::from_secs(19))));
    let plan = turn(&mut image, None, None, 40);
    assert!(matches!(plan.step, Step::Start { .. }));
    let plan = turn(&mut image, None, Some(&failed("http://a/")), 41);
    assert_eq!(plan.status.failed, Some(2), "it counts no further");
    let plan = turn(&mut image, Some(&kept("http://a/")), None, 70);
    assert_eq!((word(&plan, IMPORTED), word(&plan, RETRY_LIMIT)), ("True".to_owned(), "False".to_owned()));
}

#[test]
fn waits_grow_and_have_a_limit() {
    let waits = [1, 2, 3, 5, 6, 30, i32::MAX, 0, i32::MIN].map(|failed| retry_wait(failed).as_secs());
    assert_eq!(waits, [10, 20, 40, 160, 300, 300, 300, 10, 10]);
}

#[test]
fn a_new_address_is_a_fresh_start() {
    let mut image = image("download", "http://a/");
    image.spec.retry = Some(0);
    turn(&mut image, None, None, 0);
    turn(&mut image, None, Some(&failed("http://a/")), 1);
    image.spec.url = "http://b/".to_owned();
    let plan = turn(&mut image, None, None, 2);
    assert_eq!(plan.step, Step::Start { url: "http://b/".to_owned(), checksum: None });
    assert_eq!((plan.status.failed, word(&plan, RETRY_LIMIT)), (Some(0), "False".to_owned()));
    // While another transfer runs, or when it has just come to its end.
    assert_eq!(turn(&mut image, None, Some(&running("http://a/", 5)), 3).step, Step::Stop);
    assert_eq!(turn(&mut image, None, Some(&failed("http://a/")), 3).step, Step::Stop);
    assert_eq!(turn(&mut image, Some(&kept("http://a/")), None, 3).step, Step::Discard);
    // Once it is imported, the address is history.
    turn(&mut image, Some(&kept("http://b/")), None, 4);
    image.spec.url = "http://c/".to_owned();
    let plan = turn(&mut image, Some(&kept("http://b/")), None, 5);
    assert_eq!((plan.step, plan.status.applied_url.as_str()), (Step::Nothing, "http://b/"));
}

#[test]
fn a_mended_checksum_is_tried_at_once() {
    let mut image = image("download", "http://a/");
    turn(&mut image, None, None, 0);
    turn(&mut image, None, Some(&failed("http://a/")), 1);
    let tried = ("http://a/".to_owned(), String::new());
    let mut seen = Seen { image: &image, kept: None, transfer: None, tried: Some(&tried), now: at(2) };
    assert_eq!(plan_image(&seen).step, Step::Nothing);
    let mut mended = image.clone();
    mended.spec.checksum = "0".repeat(128);
    seen.image = &mended;
    assert!(matches!(plan_image(&seen).step, Step::Start { checksum: Some(_), .. }));
}

#[test]
fn a_lost_file_is_fetched_again() {
    let mut image = image("download", "http://a/");
    turn(&mut image, None, None, 0);
    turn(&mut image, Some(&kept("http://a/")), None, 1);
    let plan = turn(&mut image, None, None, 2);
    assert!(matches!(plan.step, Step::Start { .. }));
    assert_eq!((word(&plan, MISSING), word(&plan, IMPORTED)), ("True".to_owned(), "True".to_owned()));
    let plan = turn(&mut image, Some(&kept("http://a/")), None, 3);
    assert_eq!(word(&plan, MISSING), "False");
}

#[test]
fn an_upload_waits_fails_and_succeeds() {
    let mut image = image("upload", "");
    let plan = turn(&mut image, None, None, 0);
    assert_eq!(
        said(&plan, IMPORTED),
        ("Unknown".to_owned(), "Importing".to_owned(), "waiting for the upload".to_owned())
    );
    let plan = turn(&mut image, None, Some(&running("", 7)), 1);
    assert_eq!(plan.status.progress, Some(7));
    let broken =
        Transfer::Failed { url: String::new(), why: "cannot be taken: the upload broke off".to_owned() };
    let plan = turn(&mut image, None, Some(&broken), 2);
    assert_eq!(said(&plan, IMPORTED).1, "UploadFailed");
    assert_eq!(turn(&mut image, None, None, 3).status, plan.status, "it stays to be read");
    let plan = turn(&mut image, None, Some(&running("", 1)), 4);
    assert_eq!((word(&plan, IMPORTED), word(&plan, RETRY_LIMIT)), ("Unknown".to_owned(), "False".to_owned()));
    let plan = turn(&mut image, Some(&kept("")), None, 5);
    assert_eq!(word(&plan, IMPORTED), "True");
}

#[test]
fn what_cannot_be_is_said() {
    let mut bad = image("download", "http://a/");
    bad.spec.checksum = "abc".to_owned();
    let plan = turn(&mut bad, None, None, 0);
    assert_eq!(plan.step, Step::Nothing);
    assert!(said(&plan, IMPORTED).2.contains("this one has 3 characters"), "{:?}", said(&plan, IMPORTED));
    bad.spec.checksum = "0".repeat(128);
    assert!(matches!(turn(&mut bad, None, None, 1).step, Step::Start { checksum: Some(_), .. }));

    let plan = turn(&mut image("restore", ""), None, None, 0);
    assert!(said(&plan, INITIALIZED).2.contains("sourceType restore is not supported yet"));
}

#[test]
fn deletion_stops_what_runs() {
    let mut image = image("download", "http://a/");
    image.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
    assert_eq!(turn(&mut image, None, Some(&running("http://a/", 1)), 1).step, Step::Stop);
    let plan = turn(&mut image, None, None, 1);
    assert_eq!((plan.step, plan.status), (Step::Nothing, VirtualMachineImageStatus::default()));
}
