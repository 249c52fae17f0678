//! The storage process as a process: started, killed, stopped and started again while guests write and read.

mod bases;
mod client;
mod clones;
mod damage;
mod driver;
mod guest;
mod links;
mod node;
mod replicated;
mod single;
mod vhost;
#[allow(unreachable_pub, reason = "the lab exports it")]
#[path = "../../../sheaf-lab/src/wire.rs"]
mod wire;

/// What other tests start as a process of its own: this binary, with options in its environment.
#[test]
fn is_the_process_of_other_tests() {
    node::run_if_asked();
}
