// Groups the metrics of a job into charts: what a person looks at first, then diagnostics, then the hardware.
import { factsOf, isHardware, isOurs } from "./metrics.js";

/** Charts in their order; a line is a metric with its label. */
const GROUPS = [
  { lines: [["eval/knn_top1", "kNN"]], levels: ["untrained", "chance"] },
  { lines: [["eval/view_top1", "view"], ["eval/view_top1_chance", "chance"]], levels: ["untrained"] },
  { lines: [["train/loss", "loss"]] },
  {
    title: "Loss terms",
    about: "Instance loss and weak-label loss, before its weight beta",
    lines: [["train/loss_instance", "instance"], ["train/loss_weak", "weak"]],
    needs: "train/loss_weak",
  },
  { lines: [["weak/pair_precision", "precision"], ["weak/pair_precision_chance", "chance"]] },
  { lines: [["weak/view_agreement", "agreement"]] },
  { lines: [["weak/largest_share", "share"]] },
  { lines: [["weak/components", "components"]], isDiagnostic: true },
  {
    title: "Images that changed",
    about: "Share of test images that are right now and were wrong before the training, and the other way round",
    lines: [["eval/knn_top1_gained", "newly right"], ["eval/knn_top1_lost", "newly wrong"]],
    isDiagnostic: true,
  },
  { lines: [["train/lr", "rate"]], isDiagnostic: true },
  { lines: [["train/images_per_second", "images/s"]] },
  { lines: [["system/gpu_percent", "GPU"]] },
  { lines: [["system/gpu_memory_mib", "memory"]] },
  { lines: [["system/cpu_percent", "CPU"]] },
  { lines: [["system/process_memory_mib", "memory"]] },
];
const GROUPED = new Set(GROUPS.flatMap((group) => group.lines.map(([name]) => name)));
const MAX_OTHERS = 60; // the table of latest metrics has all

/** The groups that have data, then a chart for every other metric; those of plugins are no diagnostics. */
export function groupsOf(curves) {
  const groups = GROUPS.filter(({ lines, needs }) =>
    needs ? curves.byName.has(needs) : lines.some(([name]) => curves.byName.has(name)),
  );
  const others = [...curves.byName.keys()].filter((name) => !GROUPED.has(name)).sort().slice(0, MAX_OTHERS);
  const single = (name) => ({ lines: [[name, "value"]], isDiagnostic: isOurs(name) });
  return [...groups, ...others.map(single)].map(described);
}

function described(group) {
  const [first] = group.lines[0];
  return { ...factsOf(first), isHardware: isHardware(first), ...group };
}
