/**
 * Wraps the programs of the node (ip, tc, nft), in the mount namespace of the run only. A wrapper fails when a file
 * requests it. The daemon does not see the difference, and needs no hook.
 */
import {mkdir, readdir, rm, writeFile} from 'node:fs/promises';
import type {NetworkTestbed} from '../network/testbed.ts';
import {programs, type programFailures} from './script.ts';

export class FailingPrograms {
	readonly #orders: string;
	#ordered = 0;

	private constructor(orders: string) {
		this.#orders = orders;
	}

	/** @param directory of the run; the caller removes it */
	static async install(testbed: NetworkTestbed, directory: string): Promise<FailingPrograms> {
		const orders = `${directory}/orders`;
		await mkdir(orders);
		for (const program of programs) {
			// An order is one file. The process that removes it performs it, so that only one of several concurrent
			// programs does.
			await writeFile(
				`${directory}/${program}-wrapper`,
				`#!/bin/sh
for order in ${orders}/${program}.*; do
	rm "$order" 2>/dev/null || continue
	case $order in
	*.refuses) echo 'Error: Cannot allocate memory' >&2; exit 2 ;;
	*.killed-before) kill -KILL $$ ;;
	*.late) ${directory}/real-${program} "$@"; status=$?; sleep 2; exit $status ;;
	*.killed-after) ${directory}/real-${program} "$@"; kill -KILL $$ ;;
	esac
	break
done
exec ${directory}/real-${program} "$@"
`,
				{mode: 0o755},
			);
			await testbed.sh(`
				path=$(readlink -f "$(command -v ${program})")
				cp "$path" ${directory}/real-${program}
				mount --bind ${directory}/${program}-wrapper "$path"`);
		}

		return new FailingPrograms(orders);
	}

	/** Makes the nth run of the program from now on fail. */
	async order(program: (typeof programs)[number], run: number, how: (typeof programFailures)[number]): Promise<void> {
		for (let nth = 1; nth <= run; nth++) {
			await writeFile(
				`${this.#orders}/${program}.${String(++this.#ordered).padStart(8, '0')}.${nth === run ? how : 'works'}`,
				'',
			);
		}
	}

	/** Cancels all orders. @returns whether a failure was among them that has not happened */
	async withdraw(): Promise<boolean> {
		const left = await readdir(this.#orders);
		await Promise.all(left.map(async name => rm(`${this.#orders}/${name}`, {force: true})));
		return left.some(name => !name.endsWith('.works'));
	}
}
