from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("peasy_jobs", "0004_sign_pickles"),
    ]

    operations = [
        migrations.CreateModel(
            name="PeasyMinute",
            fields=[
                ("minute", models.IntegerField(primary_key=True, serialize=False)),
                ("completed", models.IntegerField(default=0)),
                ("failed", models.IntegerField(default=0)),
                ("cancelled", models.IntegerField(default=0)),
                ("w0", models.IntegerField(default=0)),
                ("w1", models.IntegerField(default=0)),
                ("w2", models.IntegerField(default=0)),
                ("w3", models.IntegerField(default=0)),
                ("w4", models.IntegerField(default=0)),
                ("w5", models.IntegerField(default=0)),
                ("w6", models.IntegerField(default=0)),
                ("w7", models.IntegerField(default=0)),
                ("w8", models.IntegerField(default=0)),
                ("w9", models.IntegerField(default=0)),
                ("w10", models.IntegerField(default=0)),
                ("w11", models.IntegerField(default=0)),
                ("r0", models.IntegerField(default=0)),
                ("r1", models.IntegerField(default=0)),
                ("r2", models.IntegerField(default=0)),
                ("r3", models.IntegerField(default=0)),
                ("r4", models.IntegerField(default=0)),
                ("r5", models.IntegerField(default=0)),
                ("r6", models.IntegerField(default=0)),
                ("r7", models.IntegerField(default=0)),
                ("r8", models.IntegerField(default=0)),
                ("r9", models.IntegerField(default=0)),
                ("r10", models.IntegerField(default=0)),
                ("r11", models.IntegerField(default=0)),
            ],
        ),
    ]
