/**
 * The metrics of this process and their text for Prometheus. Each label is declared with a bound on its values, so that
 * no caller, pod or VM can add series without end. Knows no event and no port.
 * Source: Prometheus documentation, "Metric and label naming" and "Exposition formats".
 */
import {Counter, Gauge, Histogram, Registry} from 'prom-client';

/** Replaces a value over the bound by `other`. */
export interface LabelBound {
	readonly bounded: (value: string) => string;
	/** All values except `other`, if they are known beforehand. */
	readonly values?: readonly string[];
}

type Bounds<Label extends string> = Readonly<Record<Label, LabelBound>>;
type Values<Label extends string> = Readonly<Record<Label, string>>;

export interface Count<Label extends string> {
	readonly add: (labels: Values<Label>, by?: number) => void;
}

export interface Level<Label extends string> {
	readonly add: (labels: Values<Label>, by: number) => void;
	readonly set: (labels: Values<Label>, value: number) => void;
}

export interface Distribution<Label extends string> {
	readonly observe: (labels: Values<Label>, value: number) => void;
}

/** What a gauge reads at each collection; undefined if it is not known now. */
export type Reading = number | undefined;

export interface Exposition {
	readonly contentType: string;
	readonly text: string;
}

const other = 'other';
/** Counters with at most this number of label values begin at 0, so that `increase()` also sees the first event. */
const mostAtZero = 20;

/** These values only. */
export function oneOf(values: readonly string[]): LabelBound {
	const known = new Set(values);
	return {values, bounded: value => (known.has(value) ? value : other)};
}

/** The first `most` different values. For names that the code itself has, whose list is elsewhere. */
export function atMost(most: number): LabelBound {
	const known = new Set<string>();
	return {
		bounded(value) {
			if (known.size < most) {
				known.add(value);
			}

			return known.has(value) ? value : other;
		},
	};
}

export class MetricRegistry {
	readonly #registry = new Registry();

	/** @param name ends with `_total` */
	counter<Label extends string = never>(
		name: string,
		help: string,
		bounds: Bounds<Label> = {} as Bounds<Label>,
	): Count<Label> {
		const counter = new Counter({name, help, labelNames: labelNames(bounds), registers: [this.#registry]});
		const all = combinations<Label>(bounds);
		if (all.length <= mostAtZero) {
			for (const labels of all) {
				counter.inc(labels, 0);
			}
		}

		return {add: (labels, by = 1) => counter.inc(bounded(bounds, labels), by)};
	}

	gauge<Label extends string = never>(
		name: string,
		help: string,
		bounds: Bounds<Label> = {} as Bounds<Label>,
	): Level<Label> {
		const gauge = new Gauge({name, help, labelNames: labelNames(bounds), registers: [this.#registry]});
		for (const labels of combinations<Label>(bounds)) {
			gauge.set(labels, 0);
		}

		return {
			add: (labels, by) => gauge.inc(bounded(bounds, labels), by),
			set: (labels, value) => gauge.set(bounded(bounds, labels), value),
		};
	}

	/** A gauge without labels whose value is read at each collection. It is absent while the reading is undefined. */
	reading(name: string, help: string, read: () => Reading): void {
		new Gauge({
			name,
			help,
			registers: [this.#registry],
			collect() {
				const value = read();
				if (value === undefined) {
					this.remove();
				} else {
					this.set(value);
				}
			},
		});
	}

	/** A counter without labels whose value is read at each collection. */
	countReading(name: string, help: string, read: () => number): void {
		new Counter({
			name,
			help,
			registers: [this.#registry],
			collect() {
				this.reset();
				this.inc(read());
			},
		});
	}

	/** @param buckets upper bounds, ascending */
	histogram<Label extends string = never>(
		name: string,
		help: string,
		buckets: readonly number[],
		bounds: Bounds<Label> = {} as Bounds<Label>,
	): Distribution<Label> {
		const histogram = new Histogram({
			name,
			help,
			buckets: [...buckets],
			labelNames: labelNames(bounds),
			registers: [this.#registry],
		});
		return {observe: (labels, value) => histogram.observe(bounded(bounds, labels), value)};
	}

	async exposition(): Promise<Exposition> {
		return {contentType: this.#registry.contentType, text: await this.#registry.metrics()};
	}
}

function labelNames<Label extends string>(bounds: Bounds<Label>): Label[] {
	return Object.keys(bounds) as Label[];
}

function bounded<Label extends string>(bounds: Bounds<Label>, labels: Values<Label>): Record<Label, string> {
	return Object.fromEntries(labelNames(bounds).map(name => [name, bounds[name].bounded(labels[name])])) as Record<
		Label,
		string
	>;
}

/** All label values together that are known beforehand; none if a label has unknown ones. */
function combinations<Label extends string>(bounds: Bounds<Label>): Array<Record<Label, string>> {
	let all: Array<Record<string, string>> = [{}];
	for (const name of labelNames(bounds)) {
		const {values = []} = bounds[name];
		all = values.flatMap(value => all.map(each => ({...each, [name]: value})));
	}

	return all;
}
