/**
 * Shows the progress of a long task: steps with their times, and a bar while bytes are counted. On a terminal, the
 * running step is one line that is redrawn. Elsewhere (CI, a file), it prints a line when a step ends, and one before
 * if the step takes long. Does not know the task.
 */
import type {WriteStream} from 'node:tty';

/** The reports of a running step. */
export interface StepReport {
	/** The number of bytes so far. If the total is known, a bar and the remaining time are shown. */
	bytes(done: number, total?: number): void;
	/** The present activity in a few words. The last one stays on the line of the finished step. */
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

	/** Runs `work` as one step and returns its result. A failure is marked and thrown again. */
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

	/** Prints a line between steps. */
	line(text: string): void {
		this.#out.write(`${text}\n`);
	}

	/** Time since the start, e.g. `12.3 s`. */
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
