// Groups the metrics of a job into charts.

const GROUPS = [
  { title: "Loss", lines: [["train/loss", "loss"]] },
  {
    title: "Loss terms",
    about: "Instance loss and weak-label loss, before the weight beta",
    lines: [["train/loss_instance", "instance"], ["train/loss_weak", "weak"]],
    needs: "train/loss_weak",
  },
  { title: "kNN accuracy", about: "On the test split, with frozen features", lines: [["eval/knn_top1", "kNN"]], isShare: true },
  {
    title: "Pair precision",
    about: "Share of pairs with one weak label that have the same class; chance is the share of random pairs",
    lines: [["weak/pair_precision", "precision"], ["weak/pair_precision_chance", "chance"]],
    isShare: true,
  },
  {
    title: "View agreement",
    about: "Agreement of the weak labels of the two views",
    lines: [["weak/view_agreement", "agreement"]],
    isShare: true,
  },
  { title: "Components", about: "Weak labels per batch", lines: [["weak/components", "components"]] },
  {
    title: "Largest component",
    about: "Share of a batch with the most frequent weak label",
    lines: [["weak/largest_share", "share"]],
    isShare: true,
  },
  { title: "Learning rate", lines: [["train/lr", "rate"]] },
  { title: "Images per second", lines: [["train/images_per_second", "images/s"]], isHardware: true },
  {
    title: "GPU utilisation, %",
    about: "Share of time with GPU activity, from NVML",
    lines: [["system/gpu_percent", "GPU"]],
    isHardware: true,
  },
  {
    title: "GPU memory, MiB",
    about: "Used by the training process",
    lines: [["system/gpu_memory_mib", "memory"]],
    isHardware: true,
  },
  {
    title: "CPU, % of a core",
    about: "CPU time of the training process; 200 is two full cores",
    lines: [["system/cpu_percent", "CPU"]],
    isHardware: true,
  },
  {
    title: "Process memory, MiB",
    about: "Resident memory of the training process",
    lines: [["system/process_memory_mib", "memory"]],
    isHardware: true,
  },
];
const GROUPED = new Set(GROUPS.flatMap((group) => group.lines.map(([name]) => name)));
const MAX_OTHERS = 60; // the table of latest metrics has all

/** The groups that have data, then a chart for every other metric. */
export function groupsOf(curves) {
  const groups = GROUPS.filter(({ lines, needs }) =>
    needs ? curves.byName.has(needs) : lines.some(([name]) => curves.byName.has(name)),
  );
  const others = [...curves.byName.keys()].filter((name) => !GROUPED.has(name)).sort().slice(0, MAX_OTHERS);
  const single = (name) => ({ title: name, lines: [[name, "value"]], isHardware: name.startsWith("system/") });
  return [...groups, ...others.map(single)];
}
