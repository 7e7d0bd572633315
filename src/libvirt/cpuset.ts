/**
 * libvirt's syntax for CPU sets: numbers, ascending ranges and exclusions, in order, separated by commas, for example
 * `0-7,^3`. Source: libvirt, docs/formatdomain ("CPU Allocation"), src/util/virbitmap.c (virBitmapParse).
 */

/** The highest CPU number that libvirt accepts (src/conf/domain_conf.h, VIR_DOMAIN_CPUMASK_LEN). */
export const highestCpu = 16_383;

/**
 * Undefined for text that libvirt would refuse: other syntax, a CPU over the limit, an empty set. Also undefined for a
 * comma at the end, which libvirt accepts.
 */
export function parseCpuset(text: string): ReadonlySet<number> | undefined {
	const cpus = new Set<number>();
	for (const part of text.split(',')) {
		const [, exclusion, start, end = start] = /^\s*(\^?)(\d{1,5})(?:-(\d{1,5}))?\s*$/v.exec(part) ?? [];
		const [first, last] = [Number(start), Number(end)];
		// For other syntax, the numbers are NaN, for which every comparison is false.
		if (!(first <= last && last <= highestCpu) || (exclusion === '^' && part.includes('-'))) {
			return undefined;
		}

		for (let cpu = first; cpu <= last; cpu++) {
			if (exclusion === '^') {
				cpus.delete(cpu);
			} else {
				cpus.add(cpu);
			}
		}
	}

	return cpus.size === 0 ? undefined : cpus;
}

/** The set in libvirt's syntax, without exclusions. */
export function formatCpuset(cpus: Iterable<number>): string {
	const ranges: Array<[first: number, last: number]> = [];
	for (const cpu of [...cpus].sort((one, other) => one - other)) {
		const range = ranges.at(-1);
		if (range?.[1] === cpu - 1) {
			range[1] = cpu;
		} else {
			ranges.push([cpu, cpu]);
		}
	}

	return ranges.map(([first, last]) => (first === last ? String(first) : `${first}-${last}`)).join(',');
}
