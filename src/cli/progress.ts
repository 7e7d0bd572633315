/** Progress of a transfer: a bar on a terminal, otherwise a line from time to time. */
import {byteSize} from '../core/byte-size.ts';
import type {Screen} from './command.ts';

export interface ProgressOptions {
	readonly screen: Screen;
	/** Monotonic, in milliseconds. */
	readonly clock: () => number;
}

/** Minimum interval between updates, so that the text is readable. */
const redrawMs = 100;
/** Without a terminal, one line per interval keeps the log of a Job short. */
const lineMs = 10_000;
/** The rate is averaged over this time. */
const windowMs = 5000;
const barWidth = 30;
const leastBarWidth = 5;
const usualColumns = 80;

/** Disposing draws the last state and moves the cursor to a new line. */
export class Progress implements Disposable {
	readonly #screen: Screen;
	readonly #clock: () => number;
	#label: string | undefined;
	#startedAt = 0;
	#drawnAt = -Infinity;
	#samples: ReadonlyArray<readonly [at: number, done: bigint]> = [];
	#last: readonly [done: bigint, total: bigint] = [0n, 0n];

	constructor({screen, clock}: ProgressOptions) {
		this.#screen = screen;
		this.#clock = clock;
	}

	/** @param label a new label starts a new bar @param done in bytes, like `total` */
	update(label: string, done: bigint, total: bigint): void {
		const now = this.#clock();
		if (label !== this.#label) {
			this.#finish();
			this.#label = label;
			this.#startedAt = now;
			this.#samples = [[now, done]];
			this.#drawnAt = this.#screen.columns === undefined ? now : -Infinity;
		}

		this.#last = [done, total];
		if (now - this.#drawnAt >= (this.#screen.columns === undefined ? lineMs : redrawMs)) {
			this.#samples = [
				...this.#samples.filter(([at], index) => at >= now - windowMs || index === this.#samples.length - 1),
				[now, done],
			];
			this.#drawnAt = now;
			this.#draw(`${this.#rate()}${remaining(this.#bytesPerSecond(), total - done)}`);
		}
	}

	[Symbol.dispose](): void {
		this.#finish();
	}

	#finish(): void {
		if (this.#label !== undefined) {
			const seconds = (this.#clock() - this.#startedAt) / 1000;
			this.#draw(`in ${duration(seconds)}`);
			this.#label = undefined;
			if (this.#screen.columns !== undefined) {
				this.#screen.write('\n');
			}
		}
	}

	#draw(end: string): void {
		const [done, total] = this.#last;
		const share = total === 0n ? 1 : Number(done) / Number(total);
		const text = `${this.#label ?? ''}  ${String(Math.floor(share * 100)).padStart(3)} %  ${byteSize(done)} of ${byteSize(total)}  ${end}`;
		const {columns} = this.#screen;
		if (columns === undefined) {
			this.#screen.write(`${text}\n`);
			return;
		}

		// Some terminals do not know their width and report 0.
		const width = (columns === 0 ? usualColumns : columns) - 1;
		// The text has priority over the bar.
		const room = Math.min(barWidth, width - text.length - '[] '.length);
		const filled = Math.round(share * room);
		const line = room < leastBarWidth ? text : `[${'#'.repeat(filled)}${'.'.repeat(room - filled)}] ${text}`;
		// Overwrite the line and erase its rest (ECMA-48, EL).
		this.#screen.write(`\r${line.slice(0, width)}\u001B[K`);
	}

	#bytesPerSecond(): number {
		const [[since, from], [at, done]] = [this.#samples[0] ?? [0, 0n], this.#samples.at(-1) ?? [0, 0n]];
		return at > since ? (Number(done - from) * 1000) / (at - since) : 0;
	}

	#rate(): string {
		const rate = this.#bytesPerSecond();
		return rate > 0 ? `${byteSize(Math.round(rate))}/s` : '';
	}
}

function remaining(bytesPerSecond: number, left: bigint): string {
	return bytesPerSecond > 0 ? `  ${duration(Number(left) / bytesPerSecond)} left` : '';
}

/** `3 s`, `2 min 5 s`, `1 h 40 min`, `12 d`. */
export function duration(seconds: number): string {
	if (seconds < 10) {
		return `${seconds.toFixed(1)} s`;
	}

	const whole = Math.round(seconds);
	const [days, hours, minutes] = [Math.floor(whole / 86_400), Math.floor(whole / 3600), Math.floor(whole / 60)];
	return days >= 2
		? `${days} d`
		: hours > 0
			? `${hours} h ${minutes % 60} min`
			: minutes > 0
				? `${minutes} min ${whole % 60} s`
				: `${whole} s`;
}
