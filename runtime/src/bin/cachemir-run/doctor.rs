//! `cachemir-run doctor`

use std::collections::BTreeSet;
use std::path::Path;

use cachemir_ckks::Ring;
use cachemir_ckks::circuits::bootstrapping::BootstrapPlan;
use cachemir_hal::{Backend as _, CpuBackend};
use cachemir_ir::parameters::{PRESET_NAMES, Parameters as Preset};
use cachemir_ir::text::format_bytes;
use cachemir_runtime::executor::slot_kind;
use cachemir_runtime::setup::{Engine, Plans, Requirements, engine_parameters};
use cachemir_runtime::{Error, memory};
use serde_json::{Value, json};

use crate::arguments::Doctor;
use crate::estimate;
use crate::output;

/// Shows what this machine offers, and what fits into its memory.
pub(crate) fn run(options: &Doctor) -> Result<(), Error> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let available = memory::available_bytes();
    let small = Ring::<CpuBackend>::new(engine_parameters(&Preset::insecure_test())?)?;
    let description = small.backend().description();
    let instructions = instruction_sets();
    let mut lines = vec![
        format!("kernels       {description}"),
        format!("chosen from   {instructions} (CACHEMIR_ISA overrides)"),
        format!("cores         {cores}"),
        format!("memory        {} available", available.map_or("unknown".to_owned(), format_bytes)),
    ];
    let mut presets = Vec::new();
    for name in PRESET_NAMES {
        let preset = Preset::preset(name)
            .map_err(|error| Error::BadOption { option: "--params", message: error.to_string() })?;
        let ring = Ring::<CpuBackend>::new(engine_parameters(&preset)?)?;
        let transform_ns = estimate::transform_ns(&ring)?;
        lines.push(format!("{name:<13} {}; one NTT by these kernels {:.1} µs", preset.security(), transform_ns / 1e3));
        let full = preset.log2_degree - 1;
        let mut sizes = Vec::new();
        for log2_slots in BTreeSet::from([12.min(full), full]) {
            let bytes = key_bytes(&ring, 1 << log2_slots)?;
            lines.push(format!("  keys of a bootstrap of 2^{log2_slots} slots: {}", format_bytes(bytes)));
            sizes.push(json!({"log2_slots": log2_slots, "bootstrap_key_bytes": bytes}));
        }
        presets.push(
            json!({"parameters": name, "security_bits": preset.security_bits(), "transform_ns": transform_ns, "slots": sizes}),
        );
    }
    let needs = options.plan.as_deref().map(requirements).transpose()?;
    let fits = needs.map(|needs| available.is_none_or(|available| needs.check(available).is_ok()));
    match (&options.plan, needs) {
        (Some(plan), Some(needs)) => lines.push(format!(
            "{}: {} of keys, {} in all, which {}",
            plan.display(),
            format_bytes(needs.key_bytes),
            format_bytes(needs.total_bytes()),
            if fits == Some(true) { "fits" } else { "does not fit" }
        )),
        _ => lines.push("a plan has further keys for its rotations: `cachemir-run doctor PLAN` says all".to_owned()),
    }
    if options.json {
        let plan =
            needs.map(|needs| json!({"key_bytes": needs.key_bytes, "needed_bytes": needs.total_bytes(), "fits": fits}));
        let object: Value = json!({"event": "doctor", "kernels": description, "instruction_sets": instructions,
            "cores": cores, "available_bytes": available, "presets": presets, "plan": plan});
        return output::line(&object);
    }
    output::text(&lines.join("\n"))
}

/// Bytes of the keys of a complex bootstrap.
fn key_bytes(ring: &Ring<CpuBackend>, slots: usize) -> Result<u64, Error> {
    let manifest = BootstrapPlan::new(ring.parameters(), slots, slot_kind(true))?.key_manifest();
    Ok(manifest.key_bytes(ring.parameters(), ring.uniform_halves()))
}

/// What a run of a plan needs, as the run itself says.
fn requirements(plan: &Path) -> Result<Requirements, Error> {
    let plans = Plans::read(plan)?;
    Ok(Engine::new(&plans.server, None)?.requirements(&plans.server.program))
}

/// What the processor reports of the instruction sets that there are kernels for.
fn instruction_sets() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512ifma", is_x86_feature_detected!("avx512ifma")),
        ];
        let found: Vec<&str> = known.iter().filter(|(_, found)| *found).map(|(name, _)| *name).collect();
        if found.is_empty() { "x86-64 without AVX2".to_owned() } else { found.join(", ") }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        std::env::consts::ARCH.to_owned()
    }
}
