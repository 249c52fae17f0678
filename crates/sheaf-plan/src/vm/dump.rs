//! A dump of a guest's memory onto a claim: from the request to the file. Pure.
//!
//! ```text
//!  Associating -> InProgress -> Unmounting -> Completed        (removememorydump) -> Dissociating -> no request
//!                          \-> Failed
//! ```
//!
//! The request stands in the VM's status. The claim becomes a volume of the template and of the running instance; the node
//! that has the machine writes the dump and says so in the volume's status. Contract: kubevirt.io/v1.

use serde_json::{Value, json};

/// On a claim: the name of the dump that it holds, or that there is none.
pub const CLAIM_NOTE: &str = "kubevirt.io/memory-dump";
/// What stands there after a failure.
const FAILED_NOTE: &str = "Memory dump failed";

/// What is to be written for a dump, all of it at once and each part safe to repeat.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DumpStep {
    /// The request as it shall stand in the VM's status; null if there is none any more.
    pub request: Option<Value>,
    /// Volumes of the VM's template.
    pub template_volumes: Option<Vec<Value>>,
    /// Volumes of the instance.
    pub instance_volumes: Option<Vec<Value>>,
    /// The note on the claim.
    pub note: Option<String>,
}

fn list<'a>(of: &'a Value, pointer: &str) -> &'a [Value] {
    of.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn is_dump(volume: &Value, claim: &str) -> bool {
    volume.pointer("/memoryDump/claimName").and_then(Value::as_str) == Some(claim)
}

/// Volumes without dumps: what an instance is made with, and what is compared.
pub fn without_dumps(template: &mut Value) {
    if let Some(volumes) = template.pointer_mut("/spec/volumes").and_then(Value::as_array_mut) {
        volumes.retain(|v| v.get("memoryDump").is_none());
    }
}

fn with(volumes: &[Value], claim: &str) -> Option<Vec<Value>> {
    if volumes.iter().any(|v| is_dump(v, claim)) {
        return None;
    }
    let mut out = volumes.to_vec();
    out.push(json!({"name": claim, "memoryDump": {"claimName": claim}}));
    Some(out)
}

fn without(volumes: &[Value], claim: &str) -> Option<Vec<Value>> {
    let left: Vec<Value> = volumes.iter().filter(|v| !is_dump(v, claim)).cloned().collect();
    (left.len() < volumes.len()).then_some(left)
}

/// What follows from the request of a VM; `None` if nothing does. `now` is a time stamp.
pub fn plan_dump(vm: &Value, vmi: Option<&Value>, now: &str) -> Option<DumpStep> {
    let request = vm.pointer("/status/memoryDumpRequest").filter(|r| r.is_object())?;
    let claim = request["claimName"].as_str().unwrap_or_default();
    let template = list(vm, "/spec/template/spec/volumes");
    let instance = vmi.map(|v| list(v, "/spec/volumes")).unwrap_or_default();
    let running = vmi.is_some_and(|v| v["status"]["phase"] == "Running");
    let status = vmi.and_then(|v| list(v, "/status/volumeStatus").iter().find(|s| s["name"] == claim));
    let to = |phase: &str, more: Value| {
        let mut out = request.clone();
        out["phase"] = json!(phase);
        if let (Some(out), Value::Object(more)) = (out.as_object_mut(), more) {
            out.extend(more);
        }
        Some(out)
    };
    let mut step = DumpStep::default();
    let phase = request["phase"].as_str().unwrap_or_default();
    if request["remove"] == true && phase != "Dissociating" {
        step.request = to("Dissociating", json!({}));
        return Some(step);
    }
    match phase {
        "Associating" | "InProgress" if !running => {
            step.request =
                to("Failed", json!({"message": "the machine does not run any more", "endTimestamp": now}));
        }
        "Associating" => {
            step.template_volumes = with(template, claim);
            step.instance_volumes = with(instance, claim);
            if step == DumpStep::default() {
                step.request = to("InProgress", json!({"startTimestamp": now}));
            }
        }
        "InProgress" => match status.map(|s| (s, s["phase"].as_str().unwrap_or_default())) {
            Some((s, "MemoryDumpCompleted")) => {
                let told = &s["memoryDumpVolume"];
                step.request = to(
                    "Unmounting",
                    json!({
                        "fileName": told["targetFileName"], "startTimestamp": told["startTimestamp"], "endTimestamp": told["endTimestamp"],
                    }),
                );
                step.note = told["targetFileName"].as_str().map(str::to_owned);
            }
            Some((s, "MemoryDumpFailed")) => {
                step.request = to("Failed", json!({"message": s["message"], "endTimestamp": now}));
                step.note = Some(FAILED_NOTE.into());
            }
            _ => {}
        },
        "Unmounting" => {
            step.instance_volumes = without(instance, claim);
            if step.instance_volumes.is_none() && status.is_none() {
                step.request = to("Completed", json!({}));
            }
        }
        "Failed" => step.instance_volumes = without(instance, claim),
        "Dissociating" => {
            step.instance_volumes = without(instance, claim);
            step.template_volumes = without(template, claim);
            if step == DumpStep::default() && status.is_none() {
                step.request = Some(Value::Null);
            }
        }
        _ => {}
    }
    (step != DumpStep::default()).then_some(step)
}

/// The request that a user's wish becomes, or the words in which it is refused.
pub fn ask(vm: &Value, claim: &str, remove: bool) -> Result<Value, String> {
    let name = vm.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let known = vm.pointer("/status/memoryDumpRequest").filter(|r| r.is_object());
    let phase = known.and_then(|k| k["phase"].as_str()).unwrap_or_default();
    if remove {
        let Some(known) = known else {
            return Err(format!("can't remove memory dump association for vm {name}, no association found"));
        };
        if known["remove"] == true {
            return Err(format!("memory dump remove request for vm {name} already exists"));
        }
        let mut out = known.clone();
        (out["remove"], out["phase"]) = (json!(true), json!("Dissociating"));
        return Ok(out);
    }
    match known {
        Some(known) if known["claimName"] != claim => {
            let other = known["claimName"].as_str().unwrap_or_default();
            Err(format!(
                "unable to memory dump: vm {name} is already associated with claim {other}; remove that association first"
            ))
        }
        Some(_) if !matches!(phase, "Completed" | "Failed") => {
            Err(format!("memory dump request for vm {name} already in progress"))
        }
        _ => Ok(json!({"claimName": claim, "phase": "Associating"})),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-28T12:00:00Z";

    /// Carries a step out, as the controller does.
    fn apply(vm: &mut Value, vmi: &mut Value, step: DumpStep) {
        if let Some(volumes) = step.template_volumes {
            vm["spec"]["template"]["spec"]["volumes"] = json!(volumes);
        }
        if let Some(volumes) = step.instance_volumes {
            vmi["spec"]["volumes"] = json!(volumes);
        }
        if let Some(request) = step.request {
            vm["status"]["memoryDumpRequest"] = request;
        }
    }

    fn world() -> (Value, Value) {
        let root = json!([{"name": "root", "persistentVolumeClaim": {"claimName": "r"}}]);
        let vm = json!({"metadata": {"name": "a"}, "spec": {"template": {"spec": {"volumes": root}}}, "status": {}});
        (vm, json!({"spec": {"volumes": root}, "status": {"phase": "Running"}}))
    }

    /// Goes on until nothing follows.
    fn settle(vm: &mut Value, vmi: &mut Value) -> String {
        for _ in 0..10 {
            let Some(step) = plan_dump(vm, Some(vmi), NOW) else { break };
            apply(vm, vmi, step);
        }
        vm["status"]["memoryDumpRequest"]["phase"].as_str().unwrap_or("none").to_owned()
    }

    #[test]
    fn from_the_request_to_the_file_and_away() {
        let (mut vm, mut vmi) = world();
        vm["status"]["memoryDumpRequest"] = ask(&vm, "dump", false).expect("taken");
        assert_eq!(settle(&mut vm, &mut vmi), "InProgress");
        assert_eq!(vmi["spec"]["volumes"][1], json!({"name": "dump", "memoryDump": {"claimName": "dump"}}));
        assert_eq!(ask(&vm, "dump", false), Err("memory dump request for vm a already in progress".into()));
        assert!(ask(&vm, "other", false).expect_err("another").contains("claim dump"));

        vmi["status"]["volumeStatus"] = json!([{"name": "dump", "phase": "MemoryDumpCompleted",
            "memoryDumpVolume": {"claimName": "dump", "targetFileName": "f", "startTimestamp": "s", "endTimestamp": "e"}}]);
        assert_eq!(settle(&mut vm, &mut vmi), "Unmounting");
        assert_eq!(vmi["spec"]["volumes"].as_array().expect("volumes").len(), 1);
        vmi["status"]["volumeStatus"] = json!([]);
        assert_eq!(settle(&mut vm, &mut vmi), "Completed");
        let request = &vm["status"]["memoryDumpRequest"];
        assert_eq!((&request["fileName"], &request["endTimestamp"]), (&json!("f"), &json!("e")));
        assert_eq!(
            vm["spec"]["template"]["spec"]["volumes"].as_array().expect("volumes").len(),
            2,
            "it stays associated"
        );
        assert!(ask(&vm, "dump", false).is_ok(), "another one, in its place");

        vm["status"]["memoryDumpRequest"] = ask(&vm, "", true).expect("taken");
        assert_eq!(settle(&mut vm, &mut vmi), "none");
        assert_eq!(vm["spec"]["template"]["spec"]["volumes"].as_array().expect("volumes").len(), 1);
        assert!(ask(&vm, "", true).expect_err("none").ends_with("no association found"));
    }

    #[test]
    fn failures_are_told_and_let_the_volume_go() {
        let (mut vm, mut vmi) = world();
        vm["status"]["memoryDumpRequest"] = ask(&vm, "dump", false).expect("taken");
        settle(&mut vm, &mut vmi);
        vmi["status"]["volumeStatus"] =
            json!([{"name": "dump", "phase": "MemoryDumpFailed", "message": "too small"}]);
        assert_eq!(settle(&mut vm, &mut vmi), "Failed");
        assert_eq!(vm["status"]["memoryDumpRequest"]["message"], "too small");
        assert_eq!(vmi["spec"]["volumes"].as_array().expect("volumes").len(), 1);

        let (mut vm, _) = world();
        vm["status"]["memoryDumpRequest"] = ask(&vm, "dump", false).expect("taken");
        let step = plan_dump(&vm, None, NOW).expect("a step");
        assert_eq!(step.request.expect("failed")["phase"], "Failed");
    }
}
