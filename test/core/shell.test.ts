import {execFileSync} from 'node:child_process';
import test from 'ava';
import {quoted} from '../../src/core/shell.ts';

test('whatever a quoted word contains, the shell reads it back unchanged', t => {
	for (const word of ['', "it's", `a "b" $c \`d\` \\e *?[f]; g & h | i > j`, "'", "''\n'", 'ü€']) {
		t.is(execFileSync('sh', ['-c', `printf %s ${quoted(word)}`]).toString(), word);
	}
});

test('a word with a NUL byte is refused', t => {
	t.throws(() => quoted('a\0b'), {instanceOf: TypeError});
});
