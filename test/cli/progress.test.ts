import test from 'ava';
import {duration, Progress} from '../../src/cli/progress.ts';

function screen(columns?: number): {
	readonly screen: {write(text: string): void; readonly columns?: number};
	readonly written: string[];
} {
	const written: string[] = [];
	return {written, screen: {write: text => void written.push(text), ...(columns === undefined ? {} : {columns})}};
}

/** 10 MiB a second for `seconds`, told every 20 ms. */
function transfer(progress: Progress, label: string, time: {now: number}, seconds: number): void {
	const total = BigInt(seconds * 10 * 1024 * 1024);
	for (let step = 1; step <= seconds * 50; step++) {
		time.now += 20;
		progress.update(label, (total * BigInt(step)) / BigInt(seconds * 50), total);
	}
}

test('on a terminal one line is drawn over itself, not too often, within its columns', t => {
	const {screen: terminal, written} = screen(80);
	const time = {now: 0};
	{
		using progress = new Progress({screen: terminal, clock: () => time.now});
		transfer(progress, 'Uploading', time, 20);
	}

	t.true(written.length < 20 * 10 + 5, String(written.length));
	t.true(written.slice(0, -1).every(text => text.startsWith('\r') && text.length < 80 + '\r\u001B[K'.length));
	t.regex(written[100] ?? '', /^\r\[#+\.+\] Uploading +50 % +100 MiB of 200 MiB +10 MiB\/s +10\.0 s left\u001B\[K$/v);
	t.is(written.at(-1), '\n');
	t.regex(written.at(-2) ?? '', /100 %/v);
});

for (const [columns, shown] of [
	[0, /^\r\[#+\.+\] Uploading +50 %.*left\u001B\[K$/v],
	[62, /^\rUploading +50 %.*left\u001B\[K$/v],
	[20, /^\rUploading +50 %.{1,5}\u001B\[K$/v],
] as const) {
	test(`on a terminal of ${columns} columns, the text has priority over the bar`, t => {
		const {screen: terminal, written} = screen(columns);
		const time = {now: 0};
		using progress = new Progress({screen: terminal, clock: () => time.now});
		transfer(progress, 'Uploading', time, 20);
		t.regex(written[100] ?? '', shown);
	});
}

test('a wide terminal shows bytes, rate and remaining time', t => {
	const {screen: terminal, written} = screen(200);
	const time = {now: 0};
	using progress = new Progress({screen: terminal, clock: () => time.now});
	transfer(progress, 'Uploading', time, 60);
	t.regex(written[300] ?? '', /Uploading +50 % +300 MiB of 600 MiB +10 MiB\/s +30 s left/v);
});

test('without a terminal there is a line now and then, and one at the end of each stage', t => {
	const {screen: file, written} = screen();
	const time = {now: 0};
	{
		using progress = new Progress({screen: file, clock: () => time.now});
		transfer(progress, 'Uploading', time, 25);
		transfer(progress, 'Checking', time, 1);
	}

	t.is(written.length, 4);
	t.true(written.every(text => /^[^\r]*\n$/v.test(text)));
	t.is(written[2], 'Uploading  100 %  250 MiB of 250 MiB  in 25 s\n');
	t.is(written[3], 'Checking  100 %  10 MiB of 10 MiB  in 1.0 s\n');
});

test('durations are short', t => {
	t.deepEqual([0, 9.94, 59, 60, 3725, 200_000].map(duration), [
		'0.0 s',
		'9.9 s',
		'59 s',
		'1 min 0 s',
		'1 h 2 min',
		'2 d',
	]);
});
