/** Reads the text format of Prometheus, as far as our metrics use it. */

/** By series, as `caa_x_total{a="b",c="d"}`. */
export function samplesOf(exposition: string): ReadonlyMap<string, number> {
	return new Map(
		exposition
			.split('\n')
			.filter(line => line !== '' && !line.startsWith('#'))
			.map(line => {
				const at = line.lastIndexOf(' ');
				return [line.slice(0, at), Number(line.slice(at + 1))];
			}),
	);
}

/** Of one metric. */
export function seriesOf(exposition: string, name: string): readonly string[] {
	return [...samplesOf(exposition).keys()].filter(series => series.split('{', 1)[0] === name);
}
