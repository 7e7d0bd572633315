/**
 * Shows what a long piece of work is doing: steps with their times, and a bar while bytes are counted. On a terminal
 * the running step is one line that is redrawn; elsewhere (CI, a file) a line when it ends, and one before when it
 * takes long. Knows nothing of the work.
 */
import type {WriteStream} from 'node:tty';

/** What a step may tell while it runs. */
export interface StepReport {
	/** Bytes so far; with the total when it is known, so that a bar and the remaining time can be shown. */
	bytes(done: number, total?: number): void;
	/** What it is at, in a few words; the last one stays on the finished step's line. */
	note(text: string): void;
}

const barWidth = 24;
const redrawMs = 100;
const longMs = 1000;

export class Progress {
	readonly #out: NodeJS.WritableStream & Partial<Pick<WriteStream, 'isTTY' | 'columns'>>;
	readonly #startedAt = performance.now();

	constructor(out: NodeJS.WritableStream) {
		this.#out = out;
	}

	/** Runs `work` as one step and returns what it returns; a failure is marked and passed on. */
	async step<T>(title: string, work: (report: StepReport) => Promise<T>): Promise<T> {
		const step = new Step(title);
		using _line = this.#show(step);
		try {
			const result = await work(step);
			step.mark = '✓';
			return result;
		} catch (error) {
			step.mark = '✗';
			throw error;
		}
	}

	/** A line of its own between steps. */
	line(text: string): void {
		this.#out.write(`${text}\n`);
	}

	/** Since this progress was made, e.g. `12.3 s`. */
	get elapsed(): string {
		return seconds(performance.now() - this.#startedAt);
	}

	#show(step: Step): Disposable {
		if (this.#out.isTTY !== true) {
			const announce = setTimeout(() => this.line(`… ${step.title}`), longMs);
			return {
				[Symbol.dispose]: () => {
					clearTimeout(announce);
					this.line(step.text());
				},
			};
		}

		const draw = (end: string): void => {
			const text = step.text();
			this.#out.write(`\r\u{1b}[K${end === '' ? text.slice(0, (this.#out.columns ?? 80) - 1) : text}${end}`);
		};
		draw('');
		const timer = setInterval(draw, redrawMs, '');
		return {
			[Symbol.dispose]: () => {
				clearInterval(timer);
				draw('\n');
			},
		};
	}
}

class Step implements StepReport {
	readonly title: string;
	readonly #startedAt = performance.now();
	#note = '';
	#done = 0;
	#total: number | undefined;
	/** Set once, at the end. */
	mark: '…' | '✓' | '✗' = '…';

	constructor(title: string) {
		this.title = title;
	}

	bytes(done: number, total?: number): void {
		this.#done = done;
		this.#total = total;
	}

	note(text: string): void {
		this.#note = text;
	}

	text(): string {
		const elapsedMs = performance.now() - this.#startedAt;
		const parts = [`${this.mark} ${this.title}`, seconds(elapsedMs)];
		if (this.#done > 0) {
			parts.push(transfer(this.#done, this.#total, elapsedMs, this.mark === '…'));
		}

		if (this.#note !== '') {
			parts.push(this.#note);
		}

		return parts.join('  ');
	}
}

function transfer(done: number, total: number | undefined, elapsedMs: number, running: boolean): string {
	const bytesPerMs = done / Math.max(1, elapsedMs);
	const rate = `${mebibytes(bytesPerMs * 1000)}/s`;
	if (!running || total === undefined || total <= 0) {
		return `${mebibytes(done)} at ${rate}`;
	}

	const filled = Math.round(barWidth * Math.min(1, done / total));
	const remainingMs = Math.max(0, total - done) / bytesPerMs;
	return `[${'#'.repeat(filled)}${'.'.repeat(barWidth - filled)}] ${mebibytes(done)} of ${mebibytes(total)} at ${rate}, ${seconds(remainingMs)} left`;
}

function seconds(ms: number): string {
	return `${(ms / 1000).toFixed(1)} s`;
}

function mebibytes(bytes: number): string {
	return `${(bytes / 1_048_576).toFixed(1)} MiB`;
}
